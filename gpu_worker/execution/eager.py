"""How does a step run on any device, operation by operation?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.execution.executor import StepResult
from gpu_worker.execution.prompt_logprobs import find_prompt_logprobs
from gpu_worker.execution.shaped_draw import draw_shaped
from gpu_worker.execution.worst_case import worst_case
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kv_cache import CacheShape
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.sampling.logprobs import to_records
from gpu_worker.sampling.parallel_sampler import ParallelSampler
from gpu_worker.sampling.sampler import Sampler
from gpu_worker.step_inputs import SlotShape, StepInputs


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """Tokens that are there."""

    result: StepResult

    @property
    def is_done(self) -> bool:
        """Always."""
        return True

    def read(self) -> StepResult:
        """See Drawn."""
        return self.result

    def device_span_ns(self) -> None:
        """See Drawn. The host waited for it."""


class EagerExecutor:
    """Runs a step to its end within `launch`.

    Args:
        max_tokens: of a step.
    """

    def __init__(
        self,
        model: DecoderModel,
        kernels: Kernels,
        slots: SlotShape,
        cache: CacheShape,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._sampler = Sampler(kernels)
        self._parallel_sampler = ParallelSampler(kernels, model.vocab)
        self._slot_shape = slots
        self._cache = cache
        self._max_tokens = max_tokens
        self._device = device
        self._slots = DeviceSlots(slots, device)
        self._kv_caches: Sequence[torch.Tensor] = ()

    def measure_bytes(self) -> int:
        """See Executor. On a CPU one token will do, to have libraries set themselves up: the number is not used."""
        on_gpu = self._device.type == "cuda"
        self._kv_caches = self._cache.allocate(1, self._device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        self.launch(worst_case(self._slot_shape, self._max_tokens if on_gpu else 1))
        self._kv_caches = ()
        return torch.cuda.max_memory_allocated(self._device) if on_gpu else 0

    def start(self, kv_caches: Sequence[torch.Tensor], on_progress: Callable[[int, int], None]) -> None:
        """See Executor."""
        self._kv_caches = kv_caches

    def release(self) -> None:
        """See Executor."""
        self._kv_caches = ()

    def read_tokens(self) -> npt.NDArray[np.int32]:
        """See Executor."""
        tokens: npt.NDArray[np.int32] = self._slots.tokens_by_slot.cpu().numpy()
        return tokens

    @torch.inference_mode()
    def launch(self, inputs: StepInputs) -> DrawnTokens:
        """See Executor."""
        self._slots.write(inputs)
        if len(inputs.positions) == 0:
            return _NOTHING
        input_ids = self._slots.token_ids.index_select(0, self._send(inputs.token_places)).long()
        positions = self._send(inputs.positions)
        hidden = self._model.forward(input_ids, positions, self._kv_caches, self._metadata(inputs))
        prompt_records = self._prompt_records(hidden, inputs) if len(inputs.prompt_logprobs) > 0 else b""
        if len(inputs.sampled_rows) == 0:
            return DrawnTokens(replace(_NOTHING.result, prompt_logprobs=prompt_records))
        logits = self._model.compute_logits(hidden.index_select(0, self._send(inputs.sampled_rows)))
        records = b""
        if inputs.is_shaped:
            choose = partial(self._sampler.sample, batch=inputs.sampling)
            drawn = draw_shaped(logits, inputs, self._slots, self._model.vocab, choose)
            token_ids, finite = drawn.token_ids, drawn.finite
            records = to_records(drawn.logprobs.cpu().numpy(), inputs.logprobs.num_logprobs)
        else:
            is_alone = self._model.vocab.parallel.world_size == 1
            sampler = self._sampler if is_alone else self._parallel_sampler
            token_ids, finite = sampler.sample(logits, inputs.sampling)
        tokens = token_ids.int()
        self._slots.token_ids.scatter_(0, self._send(inputs.drawn_places), tokens)
        return DrawnTokens(StepResult(tokens.cpu().numpy(), finite.cpu().numpy(), records, prompt_records))

    def _prompt_records(self, hidden: torch.Tensor, inputs: StepInputs) -> bytes:
        table = find_prompt_logprobs(self._model, hidden, inputs, self._slots, self._slot_shape.max_num_seqs)
        return to_records(table.cpu().numpy(), inputs.prompt_logprobs.num_logprobs)

    def _metadata(self, inputs: StepInputs) -> AttentionMetadata:
        max_blocks = -(-inputs.max_seq_len // self._cache.block_size)
        tables = self._slots.block_tables[:, :max_blocks]
        return AttentionMetadata(
            query_start=self._send(inputs.query_start),
            seq_lens=self._send(inputs.seq_lens),
            block_tables=tables.index_select(0, self._send(inputs.slots)),
            slot_mapping=self._send(inputs.slot_mapping),
            num_decodes=inputs.num_decodes,
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
            prompt_lens=torch.from_numpy(inputs.prompt_lens),
        )

    def _send(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


_NOTHING = DrawnTokens(StepResult(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.bool_)))
