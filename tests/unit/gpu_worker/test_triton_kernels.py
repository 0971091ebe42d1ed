"""The Triton kernels against the torch reference, over odd shapes, fresh random inputs and poisoned memory."""

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.kernels.triton_kernels import TritonKernels
from gpu_worker.kernels.triton_linear import is_fastest, linear
from gpu_worker.kernels.triton_product import product, product_tiles
from gpu_worker.quantization.cuda import CudaLinearMethod

SHAPES = [(1, 1), (1, 7), (3, 64), (5, 100), (2, 576), (33, 577), (3, 1536)]
REFERENCE = ReferenceKernels()
KERNELS = TritonKernels(cases.DEVICE)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=cases.DEVICE, dtype=dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=3e-6, atol=3e-6)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.poison(monkeypatch)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_equals_reference(shape: tuple[int, int]) -> None:
    x, weight = rand(*shape), rand(shape[1])
    assert_close(KERNELS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_equals_reference_and_updates_the_residual(shape: tuple[int, int]) -> None:
    x, residual, weight = rand(*shape), rand(*shape), rand(shape[1])
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(x, expected_residual, weight, 1e-6)
    assert_close(KERNELS.add_rms_norm(x, residual, weight, 1e-6), expected)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_mul_equals_reference(shape: tuple[int, int]) -> None:
    gate_up = rand(shape[0], 2 * shape[1]) * 20
    assert_close(KERNELS.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


def test_silu_mul_of_extreme_gates_stays_finite() -> None:
    gate_up = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 1e4] + [1.0] * 6], device=cases.DEVICE)
    assert_close(KERNELS.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "rotary_dim", "block_size", "normed"),
    [
        (1, 9, 3, 64, 64, 16, False),
        (7, 4, 4, 20, 8, 1, True),
        (5, 8, 1, 128, 128, 16, True),
        (9, 14, 2, 64, 32, 64, False),
        (3, 2, 2, 6, 2, 5, True),
        (2, 16, 8, 80, 80, 16, True),
    ],
)
def test_rope_and_cache_equals_reference(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    block_size: int,
    normed: bool,
) -> None:
    qkv = rand(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    positions = torch.randint(0, 50, (num_tokens,), device=cases.DEVICE)
    cos_sin = rand(50, rotary_dim)
    num_blocks = num_tokens // block_size + 3
    slots = torch.randperm(num_blocks * block_size, device=cases.DEVICE)[:num_tokens]
    slots[num_tokens // 2] = -1
    norms = (rand(head_dim), rand(head_dim)) if normed else (None, None)
    cache = torch.full((2, num_blocks, block_size, num_kv_heads, head_dim), float("nan"), device=cases.DEVICE)
    expected_cache = cache.clone()
    query = KERNELS.rope_and_cache(qkv, positions, cos_sin, cache, slots, *norms, 1e-6)
    expected = REFERENCE.rope_and_cache(qkv, positions, cos_sin, expected_cache, slots, *norms, 1e-6)
    assert_close(query, expected)
    torch.testing.assert_close(cache, expected_cache, rtol=3e-6, atol=3e-6, equal_nan=True)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (2, 5), (3, 255), (1, 257), (2, 4099), (1, 49152)])
def test_add_gumbel_noise_equals_reference(rows: int, vocab: int) -> None:
    logits = rand(rows, vocab) * 5
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), device=cases.DEVICE)
    positions = torch.randint(0, 2**40, (rows,), device=cases.DEVICE)
    actual = KERNELS.add_gumbel_noise(logits, seeds, positions)
    torch.testing.assert_close(actual, REFERENCE.add_gumbel_noise(logits, seeds, positions), rtol=1e-5, atol=1e-5)


def test_nan_goes_through_every_kernel() -> None:
    nan = torch.full((2, 64), float("nan"), device=cases.DEVICE)
    weight = torch.ones(64, device=cases.DEVICE)
    cache = torch.zeros(2, 2, 4, 1, 16, device=cases.DEVICE)
    slots = torch.tensor([0, 5], device=cases.DEVICE)
    cos_sin = torch.ones(8, 16, device=cases.DEVICE)
    results = (
        KERNELS.rms_norm(nan, weight, 1e-6),
        KERNELS.add_rms_norm(nan, torch.zeros_like(nan), weight, 1e-6),
        KERNELS.silu_mul(nan),
        KERNELS.add_gumbel_noise(nan, slots, slots),
        KERNELS.rope_and_cache(nan, slots, cos_sin, cache, slots, None, None, 1e-6),
    )
    for result in results:
        assert result.isnan().all()
    assert cache[:, 0, 0].isnan().all()
    assert cache[:, 1, 1].isnan().all()


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(("size", "outputs"), [(2, 1), (64, 10), (100, 33), (2500, 8), (10_000, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_equals_reference(num_tokens: int, size: int, outputs: int, has_bias: bool) -> None:
    half = torch.float16
    x, weight = rand(num_tokens, size, dtype=half), rand(outputs, size, dtype=half) / size**0.5
    bias = rand(outputs, dtype=half) if has_bias else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert cases.relative_error(linear(x, weight, bias, overlap=False), expected) < 2e-3


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 200])
@pytest.mark.parametrize(("size", "outputs"), [(2, 1), (128, 32), (130, 33), (300, 257)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_product_equals_reference(num_tokens: int, size: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = rand(num_tokens, size, dtype=dtype), rand(outputs, size, dtype=dtype), rand(outputs, dtype=dtype)
    expected = x.double() @ weight.double().T
    for tile in (None, *product_tiles(x.itemsize, x.device)):
        assert cases.relative_error(product(x, weight, None, False, torch.float32, tile), expected) < 3e-6
        assert cases.relative_error(product(x, weight, bias, False, None, tile), expected + bias.double()) < 2e-3


@pytest.mark.parametrize("num_tokens", [1, 70])
@pytest.mark.parametrize("deterministic", [False, True])
def test_layers_and_heads_are_multiplied_by_what_fits(num_tokens: int, deterministic: bool) -> None:
    half = torch.float16
    x, weight, bias = rand(num_tokens, 64, dtype=half), rand(33, 64, dtype=half), rand(33, dtype=half)
    method = CudaLinearMethod(cases.DEVICE, half, deterministic)
    expected = x.double() @ weight.double().T
    for result, wanted, dtype, most in (
        (method.pack(weight, None)(x), expected, half, 2e-3),
        (method.pack(weight, bias)(x), expected + bias.double(), half, 2e-3),
        (method.pack_head(weight)(x), expected, torch.float32, 3e-6),
    ):
        assert result.dtype is dtype
        assert cases.relative_error(result, wanted) < most


def test_linear_is_offered_for_few_rows_it_can_multiply() -> None:
    small, large = torch.empty(64, 64, dtype=torch.bfloat16), torch.empty(2**13, 2**11, dtype=torch.float16)
    assert [is_fastest(rows, small) for rows in (1, 4, 5)] == [True, True, False]
    assert [is_fastest(rows, large) for rows in (1, 2, 3)] == [True, True, False]
    assert not is_fastest(1, torch.empty(64, 63, dtype=torch.bfloat16))
    assert not is_fastest(1, torch.empty(64, 64))
