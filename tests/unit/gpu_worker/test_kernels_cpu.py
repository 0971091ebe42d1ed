"""The C kernels against the torch reference, over odd shapes, fresh random inputs and poisoned memory."""

import itertools

import pytest
import torch

from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.kernels.reference import ReferenceKernels, philox
from tests.unit.gpu_worker.native_kernels import native

SHAPES = [(1, 1), (1, 7), (3, 64), (5, 100), (2, 576), (33, 577), (130, 1536)]
REFERENCE = ReferenceKernels()


@pytest.fixture(params=[1, 3])
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    torch.set_num_threads(request.param)
    return CpuKernels(native())


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN, so that an element a kernel forgets is seen."""
    real_empty, real_empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: real_empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: real_empty_like(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_equals_reference(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[1])
    assert_close(kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_equals_reference_and_updates_the_residual(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    expected_residual = residual.clone()
    expected = REFERENCE.add_rms_norm(x, expected_residual, weight, 1e-6)
    assert_close(kernels.add_rms_norm(x, residual, weight, 1e-6), expected)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_mul_equals_reference(kernels: CpuKernels, shape: tuple[int, int]) -> None:
    gate_up = torch.randn(shape[0], 2 * shape[1]) * 20
    assert_close(kernels.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


def test_silu_mul_of_extreme_gates_stays_finite(kernels: CpuKernels) -> None:
    gate_up = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 1e4] + [1.0] * 6])
    assert_close(kernels.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "rotary_dim", "block_size", "normed"),
    [
        (1, 9, 3, 64, 64, 16, False),
        (7, 4, 4, 20, 8, 1, True),
        (13, 8, 1, 128, 128, 16, True),
        (65, 14, 2, 64, 32, 64, False),
        (3, 2, 2, 6, 2, 5, True),
    ],
)
def test_rope_and_cache_equals_reference(
    kernels: CpuKernels,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    block_size: int,
    normed: bool,
) -> None:
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    positions = torch.randint(0, 50, (num_tokens,))
    cos_sin = torch.randn(50, rotary_dim)
    num_blocks = num_tokens // block_size + 3
    slots = torch.randperm(num_blocks * block_size)[:num_tokens]
    slots[num_tokens // 2] = -1
    norms = (torch.randn(head_dim), torch.randn(head_dim)) if normed else (None, None)
    cache = torch.full((2, num_blocks, block_size, num_kv_heads, head_dim), float("nan"))
    expected_cache = cache.clone()
    query = kernels.rope_and_cache(qkv, positions, cos_sin, cache, slots, *norms, 1e-6)
    expected = REFERENCE.rope_and_cache(qkv, positions, cos_sin, expected_cache, slots, *norms, 1e-6)
    assert_close(query, expected)
    torch.testing.assert_close(cache, expected_cache, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (2, 5), (3, 255), (1, 257), (2, 4099), (1, 49152)])
def test_add_gumbel_noise_equals_reference(kernels: CpuKernels, rows: int, vocab: int) -> None:
    logits = torch.randn(rows, vocab) * 5
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,))
    positions = torch.randint(0, 2**40, (rows,))
    actual = kernels.add_gumbel_noise(logits, seeds, positions)
    torch.testing.assert_close(actual, REFERENCE.add_gumbel_noise(logits, seeds, positions), rtol=1e-5, atol=1e-5)


def test_philox_gives_the_published_words() -> None:
    """The known answer of the authors' test vectors for an all-zero key and counter."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox(zero, zero, 1).flatten().tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_nan_goes_through_every_kernel(kernels: CpuKernels) -> None:
    nan = torch.full((2, 64), float("nan"))
    weight = torch.ones(64)
    cache = torch.zeros(2, 2, 4, 1, 16)
    slots = torch.tensor([0, 5])
    results = (
        kernels.rms_norm(nan, weight, 1e-6),
        kernels.add_rms_norm(nan, torch.zeros(2, 64), weight, 1e-6),
        kernels.silu_mul(nan),
        kernels.add_gumbel_noise(nan, slots, slots),
        kernels.rope_and_cache(nan, slots, torch.ones(8, 16), cache, slots, None, None, 1e-6),
    )
    for result in results:
        assert result.isnan().all()
    assert cache[:, 0, 0].isnan().all()
    assert cache[:, 1, 1].isnan().all()


def test_noise_of_a_row_does_not_depend_on_its_batch(kernels: CpuKernels) -> None:
    logits = torch.randn(4, 1000)
    seeds, positions = torch.arange(4) * 7919, torch.arange(4)
    together = kernels.add_gumbel_noise(logits, seeds, positions)
    for order in itertools.permutations(range(4), 2):
        rows = torch.tensor(order)
        apart = kernels.add_gumbel_noise(logits[rows], seeds[rows], positions[rows])
        assert torch.equal(apart, together[rows])
