"""How does a step batch become the next token of each of its sequences?"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.attention.select import AttentionShape, select_backend
from gpu_worker.config import WorkerConfig
from gpu_worker.execution.executor import Drawn, Executor
from gpu_worker.execution.select import select_executor
from gpu_worker.input_batch import InputBatch
from gpu_worker.kernels.select import compiling_kernels, find_native, select_kernels, select_peer_sum
from gpu_worker.kv_cache import CacheShape, count_blocks, cpu_budget_bytes, cuda_budget_bytes, explaining_memory
from gpu_worker.models.config import ModelConfig
from gpu_worker.parallel import ParallelGroup, check_split, even_sizes
from gpu_worker.process_group import ProcessGroup
from gpu_worker.step_inputs import SlotShape
from gpu_worker.weights import load_model, read_config
from pagewire.ipc.requests import ModelInfo
from pagewire.ipc.steps import EngineConfig, LeftSequence, StepBatch, StepOutput

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is; 0 means unknown."""


class DeviceError(Exception):
    """There is no device for this rank; the message says why."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched, at a monotonic time, and may still run. `on_ill`: told the rows whose logits are not
    finite."""

    step_id: int
    drawn: Drawn
    launched_s: float
    on_ill: Callable[[npt.NDArray[np.bool_]], None]

    @property
    def is_done(self) -> bool:
        """Whether `output` returns at once."""
        return self.drawn.is_done

    def device_span_ns(self) -> tuple[int, int] | None:
        """See Drawn."""
        return self.drawn.device_span_ns()

    def output(self) -> StepOutput:
        """Wait for the step, and say what came of it."""
        result = self.drawn.read()
        if not result.finite.all():
            self.on_ill(~result.finite)
        flags = (~result.finite).tobytes()
        return StepOutput(self.step_id, result.token_ids.tobytes(), flags, result.logprobs, result.prompt_logprobs)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model for an engine's sizes."""

    engine: EngineConfig
    config: ModelConfig
    cache: CacheShape
    slots: SlotShape
    executor: Executor
    fitting_blocks: int


class ModelRunner:
    """The model, its KV cache and the slots: `load`, then `allocate`, then `launch` for each step."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._parallel = ParallelGroup(config.rank, config.tensor_parallel_size)
        self._device = _choose_device(config)
        self._group = ProcessGroup(config, self._device)
        self._loaded: _Loaded | None = None
        self.kv_caches: list[torch.Tensor] = []
        self._num_blocks = 0
        self._slots: InputBatch | None = None

    @property
    def is_ready(self) -> bool:
        """Whether steps can be launched."""
        return self._slots is not None

    def join(self, group: bytes) -> None:
        """Meet the other ranks, before the first `load`.

        Raises:
            ModelLoadError: the model cannot be split over so many ranks.
            RanksLostError: see ProcessGroup.
        """
        config = read_config(self._config.model)
        check_split(config, self._parallel.world_size)
        if self._parallel.rank == 0 and self._parallel.world_size not in even_sizes(config):
            logger.warning("ranks have unequal numbers of heads; equal are those of sizes=%s", even_sizes(config))
        self._group.join(group)

    def load(self, engine: EngineConfig, on_progress: OnProgress) -> tuple[int, ModelInfo]:
        """Load the weights and measure how many KV blocks fit. What is there already for the same sizes stays.

        Raises:
            ModelLoadError, AttentionBackendError, CacheTooSmallError: see their messages.
        """
        self._group.expect_delays(True)
        if self._on_any_rank(self._loaded is None or engine != self._loaded.engine):
            self._slots, self._loaded, self.kv_caches = None, None, []
            gc.unfreeze()
            gc.collect()
            self._loaded = self._load(engine, on_progress)
        assert self._loaded is not None
        config = self._loaded.config
        # Some models name tokens beyond their vocabulary, which are never drawn.
        eos_token_ids = tuple(token_id for token_id in config.eos_token_ids if 0 <= token_id < config.vocab_size)
        info = ModelInfo(config.architecture, config.vocab_size, config.max_model_len, eos_token_ids)
        return self._loaded.fitting_blocks, info

    def allocate(self, num_blocks: int, on_progress: OnProgress) -> bool:
        """Make room for KV blocks and start with empty slots. Whether a cache of that size was there, and is kept."""
        assert self._loaded is not None
        loaded = self._loaded
        is_new = self._on_any_rank(num_blocks != self._num_blocks or not self.kv_caches)
        if is_new:
            loaded.executor.release()
            self.kv_caches = []
            on_progress("allocating KV cache", 0, 0)
            with explaining_memory("the KV cache was allocated", self._device):
                self.kv_caches = loaded.cache.allocate(num_blocks, self._device)
            self._num_blocks = num_blocks
            logger.info(
                "kv cache allocated blocks=%d gib=%.2f", num_blocks, num_blocks * loaded.cache.block_bytes / 2**30
            )
            loaded.executor.start(self.kv_caches, lambda done, total: on_progress("capturing graphs", done, total))
        self._slots = InputBatch(loaded.slots, num_blocks)
        self._group.expect_delays(False)
        # What lives now lives on: no collection need look at it again.
        gc.collect()
        gc.freeze()
        return not is_new

    def reset_slots(self) -> tuple[LeftSequence, ...]:
        """Forget every sequence; what the KV cache holds of them. All steps are done."""
        if self._slots is None or self._loaded is None:
            return ()
        left = self._slots.left(self._loaded.executor.read_tokens())
        self._slots.clear()
        return left

    def launch(self, batch: StepBatch) -> PendingStep:
        """Enqueue a step, behind those launched before.

        Raises:
            StepBatchError: the batch contradicts the slots.
        """
        assert self._loaded is not None
        assert self._slots is not None
        slots, shape = self._slots, self._loaded.slots
        inputs = slots.apply(batch)
        drawn = self._loaded.executor.launch(inputs)
        drawing = inputs.drawing_slots(shape)
        return PendingStep(batch.step_id, drawn, time.monotonic(), lambda rows: slots.note_ill(drawing[rows]))

    def _on_any_rank(self, condition: bool) -> bool:
        """Whether it holds on some rank: what one has to do again, and what all of them do together, all do.

        Ranks differ when a scheduler died between its messages to them.
        """
        return bool(self._parallel.all_reduce_max(torch.tensor([int(condition)], device=self._device)))

    # ---- start ----------------------------------------------------------------------------------------------------

    def _load(self, engine: EngineConfig, on_progress: OnProgress) -> _Loaded:
        settings, device = self._config, self._device
        torch.manual_seed(settings.seed)
        dtype = _choose_dtype(settings.dtype, device)
        config = read_config(settings.model, engine.max_model_len)
        native = find_native(device, settings.cache_dir)
        deterministic = settings.deterministic
        kernels = select_kernels(device, native, deterministic=deterministic)
        shape = AttentionShape.of_rank(config, self._parallel, dtype)
        attention = select_backend(
            settings.attention_backend, shape, engine.block_size, device, native, deterministic=deterministic
        )
        peer_sum = select_peer_sum(
            self._parallel,
            engine.max_num_batched_tokens,
            config.hidden_size,
            dtype,
            device,
            shares_host=settings.shares_host,
            deterministic=deterministic,
        )
        with (
            explaining_memory("the weights were loaded", device),
            compiling_kernels(device, config, self._parallel, dtype, engine.block_size, deterministic=deterministic),
        ):
            model = load_model(
                settings.model,
                config,
                kernels=kernels,
                attention=attention,
                parallel=self._parallel,
                device=device,
                dtype=dtype,
                load_format=settings.load_format,
                on_progress=lambda done, total: on_progress("loading weights", done, total),
                native=native,
                peer_sum=peer_sum,
                deterministic=deterministic,
            )
        on_progress("measuring memory", 0, 0)
        cache = CacheShape(config.num_layers, engine.block_size, model.num_kv_heads, config.head_dim, model.dtype)
        slots = SlotShape(engine.max_num_seqs, config.max_model_len, engine.block_size)
        executor = select_executor(
            model,
            kernels,
            slots,
            cache,
            engine.max_num_batched_tokens,
            settings.enforce_eager,
            device,
            trace=settings.trace_dir is not None,
        )
        return _Loaded(engine, config, cache, slots, executor, self._count_blocks(engine, config, cache, executor))

    def _count_blocks(self, engine: EngineConfig, config: ModelConfig, cache: CacheShape, executor: Executor) -> int:
        started = time.monotonic()
        with explaining_memory("the largest step was tried", self._device):
            step_bytes = executor.measure_bytes()
        if self._device.type == "cpu":
            num_sharing = self._parallel.world_size if self._config.shares_host else 1
            budget_bytes = cpu_budget_bytes(self._config.cpu_memory_gib, num_sharing)
        else:
            budget_bytes = cuda_budget_bytes(self._device, self._config.gpu_memory_utilization, step_bytes)
        num_blocks = count_blocks(cache, budget_bytes, config.max_model_len, engine.max_num_seqs, engine.num_blocks)
        logger.info(
            "memory measured blocks=%d budget_gib=%.2f seconds=%.1f",
            num_blocks,
            budget_bytes / 2**30,
            time.monotonic() - started,
        )
        return num_blocks


def _choose_device(config: WorkerConfig) -> torch.device:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or config.tensor_parallel_size == 1:
        return torch.device(name)
    num_gpus = torch.cuda.device_count()
    if num_gpus == 0 or (config.shares_host and config.rank >= num_gpus):
        raise DeviceError(
            f"rank {config.rank} of {config.tensor_parallel_size} needs a GPU of its own, and torch sees {num_gpus}: "
            "lower --tensor-parallel-size"
        )
    device = torch.device("cuda", config.rank % num_gpus)
    torch.cuda.set_device(device)
    return device


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
