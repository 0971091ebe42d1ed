"""How does a step batch become the next token of each of its sequences?"""

import gc
import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from gpu_worker.attention.backend import AttentionMetadata
from gpu_worker.attention.select import select_backend
from gpu_worker.config import WorkerConfig
from gpu_worker.input_batch import InputBatch
from gpu_worker.kernels.select import find_native, select_kernels
from gpu_worker.kv_cache import CacheShape, count_blocks, cpu_budget_bytes, cuda_budget_bytes
from gpu_worker.models.decoder import DecoderModel
from gpu_worker.parallel import ParallelGroup
from gpu_worker.sampler import Sampler, SamplingBatch
from gpu_worker.weights import load_model, read_config
from pagewire.ipc.requests import ModelInfo
from pagewire.ipc.steps import EngineConfig, StepBatch, StepOutput

logger = logging.getLogger(__name__)


class ModelRunner:
    """The model, its KV cache and the slots: `load`, then `allocate`, then `execute` for each step."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._device = _choose_device(config.device)
        self._engine: EngineConfig | None = None
        self._model: DecoderModel | None = None
        self._sampler: Sampler | None = None
        self.kv_caches: list[torch.Tensor] = []
        self._num_blocks = 0
        self._fitting_blocks = 0
        self._slots: InputBatch | None = None

    @property
    def is_ready(self) -> bool:
        """Whether steps can be executed."""
        return self._slots is not None

    def load(self, engine: EngineConfig, on_progress: Callable[[int, int], None]) -> tuple[int, ModelInfo]:
        """Load the weights and measure how many KV blocks fit. What is there already for the same sizes stays.

        Raises:
            ModelLoadError, AttentionBackendError, CacheTooSmallError: see their messages.
        """
        if engine != self._engine:
            self._slots, self.kv_caches = None, []
            if self._model is None or self._engine is None or engine.max_model_len != self._engine.max_model_len:
                self._model, self._sampler = None, None
                self._load_model(engine, on_progress)
            self._engine = engine
            self._fitting_blocks = self._count_blocks(engine)
        assert self._model is not None
        config = self._model.config
        info = ModelInfo(config.architecture, config.vocab_size, config.max_model_len, config.eos_token_ids)
        return self._fitting_blocks, info

    def allocate(self, num_blocks: int) -> None:
        """Make room for KV blocks and start with empty slots. A cache of that size already there is kept."""
        assert self._model is not None
        assert self._engine is not None
        shape = self._cache_shape(self._model, self._engine)
        if num_blocks != self._num_blocks or not self.kv_caches:
            self.kv_caches = []
            self.kv_caches = shape.allocate(num_blocks, self._device)
            self._num_blocks = num_blocks
        self._slots = InputBatch(
            self._engine.max_num_seqs,
            self._model.config.max_model_len,
            self._engine.block_size,
            num_blocks,
            self._device,
        )
        # What lives now lives on: no collection need look at it again.
        gc.collect()
        gc.freeze()
        logger.info("kv cache allocated blocks=%d gib=%.2f", num_blocks, num_blocks * shape.block_bytes / 2**30)

    def reset_slots(self) -> None:
        """Forget every sequence."""
        if self._slots is not None:
            self._slots.clear()

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> StepOutput:
        """Compute a step.

        Raises:
            StepBatchError: the batch contradicts the slots.
        """
        assert self._model is not None
        assert self._sampler is not None
        assert self._slots is not None
        inputs = self._slots.apply(batch)
        if len(inputs.input_ids) == 0:
            return StepOutput(batch.step_id, b"", b"")
        hidden = self._model.forward(inputs.input_ids, inputs.positions, self.kv_caches, inputs.metadata)
        if len(inputs.sampled_rows) == 0:
            return StepOutput(batch.step_id, b"", b"")
        logits = self._model.compute_logits(hidden[inputs.sampled_rows])
        token_ids, finite = self._sampler.sample(logits, inputs.sampling)
        self._slots.store(inputs, token_ids)
        return StepOutput(batch.step_id, token_ids.int().cpu().numpy().tobytes(), (~finite).cpu().numpy().tobytes())

    # ---- start ----------------------------------------------------------------------------------------------------

    def _load_model(self, engine: EngineConfig, on_progress: Callable[[int, int], None]) -> None:
        config = self._config
        torch.manual_seed(config.seed)
        native = find_native(self._device, config.cache_dir)
        kernels = select_kernels(native)
        head_dim = read_config(config.model).head_dim
        self._model = load_model(
            config.model,
            kernels=kernels,
            attention=select_backend(config.attention_backend, self._device, head_dim, native),
            parallel=ParallelGroup(config.rank, config.tensor_parallel_size),
            device=self._device,
            dtype=_choose_dtype(config.dtype, self._device),
            max_model_len=engine.max_model_len,
            load_format=config.load_format,
            on_progress=on_progress,
            native=native,
        )
        self._sampler = Sampler(kernels)

    def _count_blocks(self, engine: EngineConfig) -> int:
        assert self._model is not None
        started = time.monotonic()
        shape = self._cache_shape(self._model, engine)
        if self._device.type == "cpu":
            self._run_worst_case(engine, shape, num_tokens=1, num_seqs=1)
            budget_bytes = cpu_budget_bytes(self._config.cpu_memory_gib)
        else:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._run_worst_case(engine, shape, engine.max_num_batched_tokens, engine.max_num_seqs)
            peak_bytes = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.empty_cache()
            budget_bytes = cuda_budget_bytes(self._device, self._config.gpu_memory_utilization, peak_bytes)
        max_model_len = self._model.config.max_model_len
        num_blocks = count_blocks(shape, budget_bytes, max_model_len, engine.max_num_seqs, engine.num_blocks)
        logger.info(
            "memory measured blocks=%d budget_gib=%.2f seconds=%.1f",
            num_blocks,
            budget_bytes / 2**30,
            time.monotonic() - started,
        )
        return num_blocks

    @torch.inference_mode()
    def _run_worst_case(self, engine: EngineConfig, shape: CacheShape, num_tokens: int, num_seqs: int) -> None:
        """One forward of num_tokens tokens and one draw for num_seqs sequences, writing to no block.

        It makes the peak of memory use measurable, and has libraries set themselves up before the first request.
        """
        assert self._model is not None
        assert self._sampler is not None
        rows = torch.zeros(num_tokens, dtype=torch.int64, device=self._device)
        zeros = torch.zeros(num_tokens, dtype=torch.int32, device=self._device)
        metadata = AttentionMetadata(
            query_start=torch.arange(num_tokens + 1, dtype=torch.int32, device=self._device),
            seq_lens=zeros + 1,
            block_tables=zeros[:, None],
            slot_mapping=rows - 1,
            num_decodes=num_tokens,
            max_query_len=1,
            max_seq_len=1,
        )
        hidden = self._model.forward(rows, rows, shape.allocate(1, self._device), metadata)
        logits = self._model.compute_logits(hidden[:1].expand(num_seqs, -1).contiguous())
        self._sampler.sample(
            logits,
            SamplingBatch(
                temperature=np.ones(num_seqs, dtype=np.float32),
                top_k=np.full(num_seqs, 2, dtype=np.int64),
                top_p=np.full(num_seqs, 0.9, dtype=np.float32),
                min_p=np.full(num_seqs, 0.1, dtype=np.float32),
                seeds=np.zeros(num_seqs, dtype=np.int64),
                positions=np.zeros(num_seqs, dtype=np.int64),
            ),
        )

    def _cache_shape(self, model: DecoderModel, engine: EngineConfig) -> CacheShape:
        return CacheShape(
            model.config.num_layers, engine.block_size, model.num_kv_heads, model.config.head_dim, model.dtype
        )


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
