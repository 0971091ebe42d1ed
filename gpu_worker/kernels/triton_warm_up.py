"""Which kernels does a model need, and how are they compiled while its weights load?

Triton compiles a kernel when it is first launched. All are launched once here, without work, in several threads: the
compiler holds no lock for most of the time. Run it beside the loading of the weights. Not the sums of several ranks:
those all ranks launch together, first when memory is measured or graphs are captured.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams
from gpu_worker.attention.triton_backend import TritonAttention
from gpu_worker.kernels.triton_jit import can_overlap, use_device
from gpu_worker.kernels.triton_kernels import TritonKernels
from gpu_worker.kernels.triton_linear import is_fastest, linear
from gpu_worker.kernels.triton_product import product, product_tiles
from gpu_worker.kernels.triton_sampling import DeviceSampling
from gpu_worker.models.config import ModelConfig
from gpu_worker.parallel import ParallelGroup, split, split_heads, split_vocab

_THREADS = 8
_EPS = 1e-6
_MAX_FEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class KernelShapes:
    """What compiled kernels depend on: this rank's sizes. `linear` and `head` hold (in_features, out_features);
    `token_ids` is this rank's part of the vocabulary. In deterministic mode other kernels are needed."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    hidden: int
    intermediate: int
    vocab: int
    token_ids: range
    block_size: int
    qk_norm: bool
    has_bias: bool
    linear: frozenset[tuple[int, int]]
    head: tuple[int, int]
    params: frozenset[AttentionParams]
    dtype: torch.dtype
    deterministic: bool = False

    @classmethod
    def of_rank(
        cls, config: ModelConfig, parallel: ParallelGroup, dtype: torch.dtype, block_size: int, *, deterministic: bool
    ) -> "KernelShapes":
        """What one rank of a model needs."""
        rank, world_size, size = parallel.rank, parallel.world_size, config.head_dim
        heads = split_heads(config.num_heads, config.num_kv_heads, rank, world_size)
        num_heads, num_kv_heads = len(heads.query), len(heads.kv)
        intermediate = len(split(config.intermediate_size, rank, world_size))
        token_ids = split_vocab(config.vocab_size, rank, world_size)
        return cls(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=size,
            rotary_dim=config.rope.rotary_dim,
            hidden=config.hidden_size,
            intermediate=intermediate,
            vocab=config.vocab_size,
            token_ids=token_ids,
            block_size=block_size,
            qk_norm=config.qk_norm,
            has_bias=config.qkv_bias or config.o_bias or config.mlp_bias,
            linear=frozenset(
                (
                    (config.hidden_size, (num_heads + 2 * num_kv_heads) * size),
                    (num_heads * size, config.hidden_size),
                    (config.hidden_size, 2 * intermediate),
                    (intermediate, config.hidden_size),
                )
            ),
            head=(config.hidden_size, len(token_ids)),
            params=frozenset(AttentionParams(size**-0.5, window) for window in config.sliding_window),
            dtype=dtype,
            deterministic=deterministic,
        )


def compile_kernels(shapes: KernelShapes, device: torch.device) -> None:
    """Launch every kernel once. Takes the time of the slowest few, and the memory of the largest linear layer."""
    launches = _fused_launches(shapes, device) + _attention_launches(shapes, device)
    if device.type == "cuda":
        launches += _linear_launches(shapes, device)
    with ThreadPoolExecutor(_THREADS, "compile", initializer=use_device, initargs=(device,)) as pool:
        for launch in [pool.submit(launch) for launch in launches]:
            launch.result()


def _fused_launches(shapes: KernelShapes, device: torch.device) -> list[Callable[[], object]]:
    kernels = TritonKernels(device, shapes.deterministic)
    size, heads = shapes.head_dim, shapes.num_heads + 2 * shapes.num_kv_heads
    x = torch.zeros(1, shapes.hidden, dtype=shapes.dtype, device=device)
    residual = torch.zeros(1, shapes.hidden, device=device)
    gate_up = torch.zeros(1, 2 * shapes.intermediate, dtype=shapes.dtype, device=device)
    qkv = torch.zeros(1, heads * size, dtype=shapes.dtype, device=device)
    norm = torch.zeros(size, dtype=shapes.dtype, device=device) if shapes.qk_norm else None
    cos_sin = torch.zeros(1, shapes.rotary_dim, device=device)
    cache = _cache(shapes, device)
    zero, nowhere = torch.zeros(1, dtype=torch.int64, device=device), torch.full((1,), -1, device=device)
    logits = torch.zeros(1, shapes.vocab, device=device)
    number, count = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    sampling = DeviceSampling(number, count, number, number, zero, zero)
    part = logits[:, : len(shapes.token_ids)]
    parts = [lambda: kernels.best_of_part(part, sampling, shapes.token_ids.start)] if part.shape != logits.shape else []
    return [
        *parts,
        lambda: kernels.sample(logits, sampling),
        lambda: kernels.rms_norm(residual, x[0], _EPS),
        lambda: kernels.add_rms_norm(x, residual, x[0], _EPS),
        lambda: kernels.silu_mul(gate_up),
        lambda: kernels.rope_and_cache(qkv, zero, cos_sin, cache, nowhere, norm, norm, _EPS),
    ]


def _attention_launches(shapes: KernelShapes, device: torch.device) -> list[Callable[[], object]]:
    """Decodes, and prefill with a few queries and with so many that the other tile is taken; no sequence has a key."""
    cache = _cache(shapes, device)
    windows = frozenset(params.sliding_window for params in shapes.params)
    many = 1 + TritonAttention.largest_small_prefill(shapes.num_heads, device)

    def launch(num_tokens: int, num_decodes: int, params: AttentionParams) -> None:
        ints = torch.zeros(2, dtype=torch.int32, device=device)
        slots = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        heads = shapes.num_heads, shapes.num_kv_heads, shapes.head_dim
        backend = TritonAttention(*heads, windows, shapes.dtype, device, shapes.deterministic)
        metadata = AttentionMetadata(ints, ints[:1], ints[None, :], slots, num_decodes, num_tokens, 1)
        query = torch.zeros(num_tokens, shapes.num_heads, shapes.head_dim, dtype=shapes.dtype, device=device)
        backend.prepare(metadata)
        backend.forward(query, cache, metadata, params)

    batches = ((1, 1),) if shapes.deterministic else ((1, 1), (2, 0), (many, 0))
    return [partial(launch, *batch, params) for batch in batches for params in shapes.params]


def _linear_launches(shapes: KernelShapes, device: torch.device) -> list[Callable[[], object]]:
    def launch(size: int, outputs: int, out_dtype: torch.dtype, has_bias: bool) -> None:
        weight = torch.empty(outputs, size, dtype=shapes.dtype, device=device)
        bias = weight.new_empty(outputs) if has_bias else None
        if shapes.deterministic:
            for tile in product_tiles(shapes.dtype.itemsize, device):
                product(weight.new_zeros(1, size), weight, bias, can_overlap(device), out_dtype, tile)
            return
        for tokens in range(1, _MAX_FEW_TOKENS + 1):
            if is_fastest(tokens, weight):
                linear(weight.new_zeros(tokens, size), weight, bias, can_overlap(device), out_dtype)

    launches = [partial(launch, *sizes, shapes.dtype, shapes.has_bias) for sizes in shapes.linear]
    return [*launches, partial(launch, *shapes.head, torch.float32, has_bias=False)]


def _cache(shapes: KernelShapes, device: torch.device) -> torch.Tensor:
    """Two blocks."""
    sizes = (2, 2, shapes.block_size, shapes.num_kv_heads, shapes.head_dim)
    return torch.zeros(sizes, dtype=shapes.dtype, device=device)
