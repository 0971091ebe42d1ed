"""The Triton kernels on a GPU in half precision: against float64, with overlapping launches, and in their full size."""

from typing import Any

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.attention.backend import AttentionParams
from gpu_worker.kernels.reference import ReferenceKernels, gumbel_noise
from gpu_worker.kernels.triton_kernels import TritonKernels
from gpu_worker.kernels.triton_linear import linear
from gpu_worker.kernels.triton_norm import add_rms_norm
from gpu_worker.kernels.triton_product import product
from gpu_worker.kernels.triton_sampling import DeviceSampling
from gpu_worker.kernels.triton_silu import silu_mul
from gpu_worker.kernels.triton_warm_up import KernelShapes, compile_kernels

pytestmark = [pytest.mark.gpu, cases.needs_gpu]

REFERENCE = ReferenceKernels()
KERNELS = TritonKernels(cases.DEVICE)
HALVES = [torch.bfloat16, torch.float16]
VOCAB = 151_936


def rand(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device=cases.DEVICE, dtype=dtype)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.poison(monkeypatch)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1, 1024), (7, 576), (256, 4096), (3000, 8192)])
def test_norms_and_gate_are_within_one_percent_of_float64(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual, weight = rand(*shape, dtype=dtype), rand(*shape, dtype=torch.float32), rand(shape[1], dtype=dtype)
    wide = residual.double()
    expected = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6) * weight.double()
    assert cases.relative_error(KERNELS.rms_norm(residual, weight, 1e-6), expected) < 5e-3
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(x, expected_residual, weight, 1e-6)
    assert cases.relative_error(KERNELS.add_rms_norm(x, residual, weight, 1e-6), expected) < 5e-3
    assert torch.equal(residual, expected_residual)
    gate_up = torch.cat((x, weight.expand_as(x)), dim=1)
    expected = torch.nn.functional.silu(x.double()) * weight.double()
    assert cases.relative_error(KERNELS.silu_mul(gate_up), expected) < 5e-3


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shape", [(16, 8, 128, 128), (32, 8, 128, 64), (9, 3, 64, 64), (16, 4, 256, 256), (14, 2, 80, 40)]
)
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_cache_is_within_one_percent(
    dtype: torch.dtype, shape: tuple[int, int, int, int], normed: bool
) -> None:
    heads, kv_heads, dim, rotary_dim = shape
    num_tokens, num_blocks, block_size = 300, 40, 16
    qkv = rand(num_tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    positions = torch.randint(0, 5000, (num_tokens,), device=cases.DEVICE)
    cos_sin = rand(5000, rotary_dim, dtype=torch.float32)
    slots = torch.randperm(num_blocks * block_size, device=cases.DEVICE)[:num_tokens]
    norms = (rand(dim, dtype=dtype), rand(dim, dtype=dtype)) if normed else (None, None)
    cache = rand(2, num_blocks, block_size, kv_heads, dim, dtype=dtype)
    expected_cache = cache.clone()
    query = KERNELS.rope_and_cache(qkv, positions, cos_sin, cache, slots, *norms, 1e-6)
    expected = REFERENCE.rope_and_cache(qkv, positions, cos_sin, expected_cache, slots, *norms, 1e-6)
    assert cases.relative_error(query, expected) < 5e-3
    assert cases.relative_error(cache, expected_cache) < 5e-3


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(("size", "outputs"), [(1024, 4096), (3072, 1024), (12288, 4096)])
def test_linear_is_within_one_percent_of_float64(dtype: torch.dtype, num_tokens: int, size: int, outputs: int) -> None:
    x, weight = rand(num_tokens, size, dtype=dtype), rand(outputs, size, dtype=dtype) / size**0.5
    expected = x.double() @ weight.double().T
    assert cases.relative_error(linear(x, weight, None, overlap=True), expected) < 5e-3
    precise = linear(x, weight, None, overlap=True, out_dtype=torch.float32)
    assert cases.relative_error(precise, expected) < 1e-5


def test_a_chain_of_overlapping_launches_gives_what_single_ones_give() -> None:
    """Each kernel reads what the one before wrote, in a graph, again and again: a missing wait would show."""
    dtype, size = torch.bfloat16, 1024
    weights = [rand(size, size, dtype=dtype) / size**0.5 for _ in range(12)]
    norm = torch.ones(size, dtype=dtype, device=cases.DEVICE)

    def chain(x: torch.Tensor, overlap: bool) -> torch.Tensor:
        residual = x.float()
        for weight in weights:
            x = linear(x, weight, None, overlap)
            x = add_rms_norm(x, residual, norm, 1e-6, overlap)
            x = silu_mul(torch.cat((x, residual.to(dtype)), dim=1), overlap)
            x = linear(x, weight, None, overlap)
            x = linear(x, weight, None, overlap)
        return x

    x = rand(4, size, dtype=dtype)
    chain(x, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = chain(x, True)
    for _ in range(50):
        x.copy_(rand(4, size, dtype=dtype))
        graph.replay()
        assert torch.equal(actual, chain(x, False))


def test_noise_over_the_whole_vocabulary_is_within_1e_5() -> None:
    seeds = torch.randint(-(2**63), 2**63 - 1, (20,), device=cases.DEVICE)
    positions = torch.randint(0, 2**40, (20,), device=cases.DEVICE)
    actual = KERNELS.add_gumbel_noise(torch.zeros(20, VOCAB, device=cases.DEVICE), seeds, positions)
    expected = gumbel_noise(seeds.cpu(), positions.cpu(), VOCAB)
    assert (actual.cpu() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (20, 0.95, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)])
def test_sampling_follows_the_noise_over_a_whole_vocabulary(
    dtype: torch.dtype, top_k: int, top_p: float, min_p: float
) -> None:
    """Against a sort in float64, except where two tokens are within rounding of each other."""
    rows, temperature = 40, 0.7
    logits = (rand(rows, VOCAB, dtype=torch.float32) * 3).to(dtype)
    fill = {"device": cases.DEVICE, "dtype": torch.float32}
    sampling = DeviceSampling(
        torch.full((rows,), temperature, **fill),
        torch.full((rows,), top_k, device=cases.DEVICE, dtype=torch.int32),
        torch.full((rows,), top_p, **fill),
        torch.full((rows,), min_p, **fill),
        torch.randint(-(2**63), 2**63 - 1, (rows,), device=cases.DEVICE),
        torch.randint(0, 2**40, (rows,), device=cases.DEVICE),
    )
    tokens, finite = KERNELS.sample(logits, sampling)
    scaled = logits.double() / temperature
    order = scaled.argsort(dim=-1, descending=True)
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp()
    weights = weights.masked_fill(weights < min_p, 0)
    ranked = weights.gather(1, order)
    if top_k > 0:
        ranked[:, top_k:] = 0
    shares = ranked / ranked.sum(dim=-1, keepdim=True)
    kept = (ranked > 0) & (shares.cumsum(dim=-1) - shares < top_p)
    noise = gumbel_noise(sampling.seeds, sampling.positions, VOCAB).double()
    noisy = (scaled + noise).gather(1, order).masked_fill(~kept, float("-inf"))
    expected = order.gather(1, noisy.argmax(dim=-1, keepdim=True))[:, 0]
    assert finite.all()
    assert (tokens == expected).sum() >= rows - 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_compile_kernels_leaves_nothing_to_compile(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    compiled: list[str] = []

    def note(*args: Any, **kwargs: Any) -> None:
        compiled.append(kwargs["repr"])

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    shapes = KernelShapes(
        num_heads=6,
        num_kv_heads=3,
        head_dim=64,
        rotary_dim=64,
        hidden=384,
        intermediate=512,
        vocab=5000,
        token_ids=range(5000),
        block_size=16,
        qk_norm=True,
        has_bias=False,
        linear=frozenset({(384, 768), (512, 384)}),
        head=(384, 5000),
        params=frozenset({AttentionParams(0.125)}),
        dtype=torch.bfloat16,
        deterministic=deterministic,
    )
    compile_kernels(shapes, cases.DEVICE)
    assert compiled
    compiled.clear()
    for lengths in ([(1, 40)], [(1, 900)] * 20, [(9, 9)], [(1, 30), (6000, 6100)]):
        batch = cases.PagedBatch(lengths, 6, 3, 64, 16, torch.bfloat16)
        tokens = batch.query.shape[0]
        batch.attend(AttentionParams(0.125), deterministic)
        x = rand(tokens, 384, dtype=torch.bfloat16)
        residual = x.float()
        KERNELS.add_rms_norm(KERNELS.rms_norm(residual, x[0], 1e-6), residual, x[0], 1e-6)
        KERNELS.silu_mul(rand(tokens, 1024, dtype=torch.bfloat16))
        if deterministic:
            product(x, rand(768, 384, dtype=torch.bfloat16), None, overlap=True)
            product(x[:64], rand(5000, 384, dtype=torch.bfloat16), None, overlap=True, out_dtype=torch.float32)
        elif tokens <= 4:
            linear(x, rand(768, 384, dtype=torch.bfloat16), None, overlap=True)
            linear(x, rand(5000, 384, dtype=torch.bfloat16), None, overlap=True, out_dtype=torch.float32)
        slots = torch.arange(tokens, device=cases.DEVICE)
        positions = torch.zeros(tokens, device=cases.DEVICE)
        sampling = DeviceSampling(positions + 1, slots.int(), positions, positions, slots, slots)
        KERNELS.sample(rand(tokens, 5000, dtype=torch.float32), sampling)
    assert compiled == []
