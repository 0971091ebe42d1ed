"""Ranks with parts of the vocabulary draw what one rank with all of it draws."""

import numpy as np
import pytest
import torch

from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.parallel import VocabPart
from gpu_worker.sampling.parallel_sampler import ParallelSampler, pack_draws, unpack_draws
from gpu_worker.sampling.sampler import Sampler, SamplingBatch
from tests.unit.gpu_worker.native_kernels import native
from tests.unit.gpu_worker.thread_ranks import ThreadGroup, run_ranks

PLAIN = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (0.0, 5, 0.5, 0.5)]
FILTERED = [(1.0, 3, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.2)]


@pytest.fixture(params=["cpu", "reference"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return CpuKernels(native()) if request.param == "cpu" else ReferenceKernels()


def batch_of(rows: list[tuple[float, int, float, float]]) -> SamplingBatch:
    """Rows with seeds and positions that differ from test to test."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    random = np.random.default_rng(torch.initial_seed())
    return SamplingBatch(
        np.array(temperature, dtype=np.float32),
        np.array(top_k, dtype=np.int64),
        np.array(top_p, dtype=np.float32),
        np.array(min_p, dtype=np.float32),
        random.integers(-(2**63), 2**63 - 1, len(rows)),
        random.integers(0, 2**40, len(rows)),
    )


def check(kernels: Kernels, logits: torch.Tensor, batch: SamplingBatch, world_size: int) -> None:
    """All ranks draw the same, which is what one rank draws."""

    def run(group: ThreadGroup) -> tuple[torch.Tensor, torch.Tensor]:
        vocab = VocabPart(group, logits.shape[1])
        own = logits[:, vocab.token_ids.start : vocab.token_ids.stop].contiguous()
        return ParallelSampler(kernels, vocab).sample(own, batch)

    expected, expected_finite = Sampler(kernels).sample(logits, batch)
    for tokens, finite in run_ranks(world_size, run):
        assert finite.tolist() == expected_finite.tolist()
        assert tokens[finite].tolist() == expected[expected_finite].tolist()
        assert ((tokens >= 0) & (tokens < logits.shape[1])).all()


@pytest.mark.parametrize("rows", [PLAIN, [PLAIN[0]], [PLAIN[1]], FILTERED, PLAIN + FILTERED])
@pytest.mark.parametrize(("vocab", "world_size"), [(49, 2), (300, 3), (5003, 4)])
def test_ranks_draw_what_one_rank_draws(
    kernels: Kernels, rows: list[tuple[float, int, float, float]], vocab: int, world_size: int
) -> None:
    check(kernels, torch.randn(4 * len(rows), vocab), batch_of(rows * 4), world_size)


def test_the_first_of_equal_logits_is_drawn(kernels: Kernels) -> None:
    logits = torch.randint(-2, 2, (40, 100)).float()
    logits[0] = torch.where(torch.arange(100) % 2 == 0, -0.0, 0.0)
    check(kernels, logits, batch_of([PLAIN[0]] * 40), 4)


def test_ranks_flag_the_same_rows(kernels: Kernels) -> None:
    logits = torch.randn(8, 100)
    logits[1, 0], logits[3, 99], logits[5, 50] = float("nan"), float("inf"), float("-inf")
    logits[7] = float("nan")
    check(kernels, logits, batch_of(PLAIN * 2), 3)


def test_draws_without_filters_gather_no_logits(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadGroup, "all_gather", lambda self, x: pytest.fail("logits were gathered"))
    check(kernels, torch.randn(4, 100), batch_of(PLAIN), 2)


def test_packed_draws_order_as_values_do_and_then_by_token() -> None:
    values = torch.tensor([float("-inf"), -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 2.5, 3e38])
    tokens = torch.arange(9, 0, -1) * 10_000_000
    packed = pack_draws(values, tokens, torch.ones(9, dtype=torch.bool))
    assert packed.tolist() == sorted(packed.tolist())
    assert unpack_draws(packed)[0].tolist() == tokens.tolist()
