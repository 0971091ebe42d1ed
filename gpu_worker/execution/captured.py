"""How does a GPU run a step with two launches, whatever the batch?

A step is two programs. The first runs the layers and keeps the hidden states to draw from; the second makes logits of
them, draws, and stores the tokens where the next step reads them. Each is captured once per padded size as a CUDA
graph, and what differs between batches lies in device memory:

    host     pack and copy the numbers -> replay the layers -> replay the draw -> copy the tokens back -> next step
    device   . . . . . . . . . . . . . . . the same, in order, without waiting for the host

Ranks that have parts of the vocabulary have two programs that draw: they exchange their best tokens if no row filters,
else all logits (see parallel_sampler).

Batches of more tokens than graphs are captured for run operation by operation: the device takes longer than the host.
So do draws with penalties or log probabilities (see shaped_draw).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.execution.device_clock import DeviceClock
from gpu_worker.execution.device_slots import DeviceSlots
from gpu_worker.execution.executor import StepResult
from gpu_worker.execution.graphs import GraphPool, GraphSizes
from gpu_worker.execution.prompt_logprobs import find_prompt_logprobs
from gpu_worker.execution.shaped_draw import draw_shaped
from gpu_worker.execution.staging import DrawInputs, PaddedShape, Staging
from gpu_worker.execution.worst_case import NO_INPUTS, worst_case
from gpu_worker.kernels.triton_kernels import TritonKernels
from gpu_worker.kernels.triton_sampling import DeviceSampling
from gpu_worker.kv_cache import CacheShape
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.sampling.logprobs import to_records
from gpu_worker.sampling.parallel_sampler import pack_draws, unpack_draws
from gpu_worker.step_inputs import SlotShape, StepInputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrawShape:
    """Which program draws. `num_sampled` counts padding; `gathers`: ranks gather all logits before they draw."""

    num_sampled: int
    gathers: bool


@dataclass(frozen=True, slots=True)
class DrawnOnDevice:
    """Tokens on their way.

    host: [2, num_sampled] int32, tokens and whether their logits are finite.
    logprobs, num_logprobs: a table of log probabilities, and how many of each row are wanted; see find_logprobs.
    prompt_logprobs, num_prompt_logprobs: the same of prompt tokens.
    copied: done when they are there.
    traced: where the device's times are wanted, a clock, and an event before the step's first kernel.
    """

    host: torch.Tensor
    logprobs: torch.Tensor | None
    num_logprobs: npt.NDArray[np.int64]
    prompt_logprobs: torch.Tensor | None
    num_prompt_logprobs: npt.NDArray[np.int64]
    copied: torch.cuda.Event
    traced: tuple[DeviceClock, torch.cuda.Event] | None

    @property
    def is_done(self) -> bool:
        """See Drawn."""
        return bool(self.copied.query())  # type: ignore[no-untyped-call]

    def read(self) -> StepResult:
        """See Drawn."""
        self.copied.synchronize()
        tokens, finite = self.host.numpy()
        records = _to_records(self.logprobs, self.num_logprobs)
        prompt_records = _to_records(self.prompt_logprobs, self.num_prompt_logprobs)
        return StepResult(tokens, finite.astype(np.bool_), records, prompt_records)

    def device_span_ns(self) -> tuple[int, int] | None:
        """See Drawn."""
        if self.traced is None:
            return None
        clock, begun = self.traced
        return clock.time_ns(begun), clock.time_ns(self.copied)


class CapturedExecutor:
    """Runs steps with Triton kernels on a GPU.

    Args:
        max_tokens: of a step.
        sizes: for which graphs are captured; None for no graphs at all.
        trace: have the device note when it runs each step.
    """

    def __init__(
        self,
        model: DecoderModel,
        kernels: TritonKernels,
        slots: SlotShape,
        cache: CacheShape,
        max_tokens: int,
        sizes: GraphSizes | None,
        device: torch.device,
        trace: bool,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._slot_shape = slots
        self._cache = cache
        self._max_tokens = max_tokens
        self._sizes = sizes
        self._device = device
        self._slots = DeviceSlots(slots, device)
        max_seqs = slots.max_num_seqs if sizes is None else max(slots.max_num_seqs, sizes.draws[-1])
        most_tokens = max_tokens if sizes is None else max(max_tokens, sizes.mixed[-1], sizes.decodes[-1])
        padding = self._slots.padding_slot, self._slots.padding_place
        self._staging = Staging(max_seqs, most_tokens, *padding, device)
        hidden_size = model.config.hidden_size
        self._last_hidden = torch.zeros((max_seqs, hidden_size), dtype=model.dtype, device=device)
        self._drawn = torch.zeros((2, max_seqs), dtype=torch.int32, device=device)
        self._kv_caches: Sequence[torch.Tensor] = ()
        self._graphs = GraphPool(device)
        self._clock = DeviceClock() if trace else None

    # ---- start ----------------------------------------------------------------------------------------------------

    def measure_bytes(self) -> int:
        """See Executor. What graphs take is measured on a few of them and counted for all."""
        self._kv_caches = self._cache.allocate(1, self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.launch(worst_case(self._slot_shape, self._max_tokens)).read()
        peak_bytes = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.empty_cache()
        graph_bytes = 0 if self._sizes is None else self._measure_graphs(self._sizes)
        self._kv_caches = ()
        logger.info("memory of steps measured peak_gib=%.2f graphs_gib=%.2f", peak_bytes / 2**30, graph_bytes / 2**30)
        return peak_bytes + graph_bytes

    def start(self, kv_caches: Sequence[torch.Tensor], on_progress: Callable[[int, int], None]) -> None:
        """See Executor. Captures the graphs, largest first: the smaller ones then fit into their memory."""
        self._kv_caches = kv_caches
        if self._sizes is None:
            return
        started, captures = time.monotonic(), self._captures(self._sizes)
        for done, key in enumerate(captures):
            on_progress(done, len(captures))
            self._capture(key)
        on_progress(len(captures), len(captures))
        logger.info("graphs captured graphs=%d seconds=%.1f", len(captures), time.monotonic() - started)

    def release(self) -> None:
        """See Executor. Graphs know where the caches lie."""
        self._graphs.clear()
        self._kv_caches = ()

    def _captures(self, sizes: GraphSizes) -> list[PaddedShape | DrawShape]:
        """What is captured: layers by shape, then draws by rows, of several ranks first those that gather."""
        shapes = [self._mixed_shape(size) for size in reversed(sizes.mixed)]
        shapes += [PaddedShape(size, size, mixed=False) for size in reversed(sizes.decodes)]
        kinds = (False,) if self._is_alone else (True, False)
        return [*shapes, *(DrawShape(size, gathers) for gathers in kinds for size in reversed(sizes.draws))]

    def _capture(self, key: PaddedShape | DrawShape) -> None:
        """Capture one program, on a batch that is all padding."""
        if isinstance(key, PaddedShape):
            self._staging.send(NO_INPUTS, key, 0)
            self._graphs.capture(key, self._layer_program(key))
        else:
            self._staging.send(NO_INPUTS, PaddedShape(0, 0, mixed=False), key.num_sampled)
            self._graphs.capture(key, self._draw_program(key))

    def _measure_graphs(self, sizes: GraphSizes) -> int:
        """Bytes that all graphs will take: the largest of each kind as they are, the others as the second smallest."""
        captures = self._captures(sizes)
        first_of_kind = (0, len(sizes.mixed), len(sizes.mixed) + len(sizes.decodes))
        largest = [captures[index] for index in first_of_kind]
        small = captures[first_of_kind[2] - 3 : first_of_kind[2] - 1]
        used = [self._used_bytes()]
        for group in (largest, small):
            for key in group:
                self._capture(key)
            used.append(self._used_bytes())
        self._graphs.clear()
        torch.cuda.empty_cache()
        each_bytes = (used[2] - used[1]) // max(len(small), 1)
        return used[1] - used[0] + each_bytes * (len(captures) - len(largest))

    def _used_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        return total_bytes - free_bytes

    # ---- steps ----------------------------------------------------------------------------------------------------

    def read_tokens(self) -> npt.NDArray[np.int32]:
        """See Executor."""
        tokens: npt.NDArray[np.int32] = self._slots.tokens_by_slot.cpu().numpy()
        return tokens

    @torch.inference_mode()
    def launch(self, inputs: StepInputs) -> DrawnOnDevice:
        """See Executor."""
        num_sampled = len(inputs.sampled_rows)
        begun, logprobs, prompt_logprobs = None, None, None
        self._slots.write(inputs)
        if len(inputs.positions) > 0:
            shape, draws = self._pad(inputs), self._pad_draws(inputs)
            self._staging.send(inputs, shape, draws.num_sampled)
            begun = None if self._clock is None else self._clock.event()
            if len(inputs.prompt_logprobs) > 0:
                hidden = self._layer_program(shape)()
                most_rows = self._slot_shape.max_num_seqs
                prompt_logprobs = find_prompt_logprobs(self._model, hidden, inputs, self._slots, most_rows)
            elif not self._graphs.replay(shape):
                self._layer_program(shape)()
            if inputs.is_shaped:
                logprobs = self._draw_shaped(inputs, draws.num_sampled)
            elif num_sampled > 0 and not self._graphs.replay(draws):
                self._draw_program(draws)()
        host = _to_host(self._drawn[:, :num_sampled])
        table = None if logprobs is None else _to_host(logprobs)
        prompt_table = None if prompt_logprobs is None else _to_host(prompt_logprobs)
        traced = None if self._clock is None or begun is None else (self._clock, begun)
        copied = torch.cuda.Event() if traced is None else traced[0].event()  # type: ignore[no-untyped-call]
        if traced is None:
            copied.record()
        counts = inputs.logprobs.num_logprobs, inputs.prompt_logprobs.num_logprobs
        return DrawnOnDevice(host, table, counts[0], prompt_table, counts[1], copied, traced)

    def _pad(self, inputs: StepInputs) -> PaddedShape:
        num_seqs, num_tokens = len(inputs.slots), len(inputs.positions)
        mixed = inputs.max_query_len > 1
        padded = None
        if self._sizes is not None:
            padded = self._sizes.pad_mixed(num_tokens) if mixed else self._sizes.pad_decodes(num_tokens)
        if padded is None:
            return PaddedShape(num_seqs, num_tokens, mixed)
        return self._mixed_shape(padded) if mixed else PaddedShape(padded, padded, mixed=False)

    def _pad_draws(self, inputs: StepInputs) -> DrawShape:
        num_sampled = len(inputs.sampled_rows)
        padded = None if self._sizes is None else self._sizes.pad_draws(num_sampled)
        gathers = not self._is_alone and inputs.sampling.has_filters
        return DrawShape(num_sampled if padded is None else padded, gathers)

    @property
    def _is_alone(self) -> bool:
        return self._model.vocab.parallel.world_size == 1

    def _mixed_shape(self, num_tokens: int) -> PaddedShape:
        return PaddedShape(min(num_tokens, self._slot_shape.max_num_seqs), num_tokens, mixed=True)

    def _layer_program(self, shape: PaddedShape) -> Callable[[], torch.Tensor]:
        """What runs the layers, and gives all rows after the last norm."""
        views = self._staging.layer_inputs(shape)
        metadata = AttentionMetadata(
            query_start=views.query_start,
            seq_lens=views.seq_lens,
            block_tables=self._slots.block_tables,
            slot_mapping=views.slot_mapping,
            num_decodes=shape.num_seqs,
            max_query_len=shape.num_tokens if shape.mixed else 1,
            max_seq_len=self._slot_shape.max_model_len,
        )

        def run() -> torch.Tensor:
            metadata.block_tables = self._slots.block_tables.index_select(0, views.slots)
            input_ids = self._slots.token_ids.index_select(0, views.token_places).long()
            hidden = self._model.forward(input_ids, views.positions, self._kv_caches, metadata)
            torch.index_select(hidden, 0, views.sampled_rows, out=self._last_hidden[: shape.num_seqs])
            return hidden

        return run

    def _draw_program(self, shape: DrawShape) -> Callable[[], None]:
        num_sampled = shape.num_sampled
        views = self._staging.draw_inputs(num_sampled)
        sampling = _sampling_of(views)
        choose = self._sample if self._is_alone or shape.gathers else self._agree

        def run() -> None:
            logits = self._model.compute_logits(self._last_hidden[:num_sampled])
            self._store(*choose(logits, sampling), views)

        return run

    def _draw_shaped(self, inputs: StepInputs, num_sampled: int) -> torch.Tensor:
        """Draw where some row has penalties or wants log probabilities: a table of those, see find_logprobs.

        Args:
            num_sampled: counts padding.
        """
        views = self._staging.draw_inputs(num_sampled)
        choose = partial(self._kernels.sample, sampling=_sampling_of(views))
        logits = self._model.compute_logits(self._last_hidden[:num_sampled])
        drawn = draw_shaped(logits, inputs, self._slots, self._model.vocab, choose)
        self._store(drawn.token_ids, drawn.finite, views)
        return drawn.logprobs

    def _store(self, tokens: torch.Tensor, finite: torch.Tensor, views: DrawInputs) -> None:
        """Keep what was drawn where the host and the next step find it."""
        drawn = self._drawn[:, : len(tokens)]
        drawn[0].copy_(tokens)
        drawn[1].copy_(finite)
        self._slots.token_ids.scatter_(0, views.drawn_places, drawn[0])

    def _sample(self, logits: torch.Tensor, sampling: DeviceSampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw from all logits; what rank 0 draws counts."""
        vocab = self._model.vocab
        tokens, finite = self._kernels.sample(vocab.gather(logits), sampling)
        return vocab.parallel.broadcast(tokens), finite

    def _agree(self, logits: torch.Tensor, sampling: DeviceSampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw from this rank's logits, and take the best draw of all ranks."""
        vocab = self._model.vocab
        draws = pack_draws(*self._kernels.best_of_part(logits, sampling, vocab.token_ids.start))
        return unpack_draws(vocab.parallel.all_reduce_max(draws))


def _sampling_of(views: DrawInputs) -> DeviceSampling:
    return DeviceSampling(views.temperature, views.top_k, views.top_p, views.min_p, views.seeds, views.positions)


def _to_records(table: torch.Tensor | None, num_logprobs: npt.NDArray[np.int64]) -> bytes:
    return b"" if table is None else to_records(table.numpy(), num_logprobs)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is there once the stream has got to it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
