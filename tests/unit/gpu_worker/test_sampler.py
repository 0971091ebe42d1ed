"""Token choice against a reference written out in numpy, and against the distributions it must follow."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpu_worker.kernels.cpu import CpuKernels
from gpu_worker.kernels.interface import Kernels
from gpu_worker.kernels.reference import ReferenceKernels, gumbel_noise
from gpu_worker.sampling.sampler import Sampler, SamplingBatch
from tests.unit.gpu_worker.native_kernels import native


@pytest.fixture(params=["cpu", "reference"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    kernels: Kernels = CpuKernels(native()) if request.param == "cpu" else ReferenceKernels()
    return Sampler(kernels)


def batch_of(rows: list[tuple[float, int, float, float]], seed: int = 7) -> SamplingBatch:
    """Rows of (temperature, top_k, top_p, min_p); seeds and positions differ from row to row."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return SamplingBatch(
        np.array(temperature, dtype=np.float32),
        np.array(top_k, dtype=np.int64),
        np.array(top_p, dtype=np.float32),
        np.array(min_p, dtype=np.float32),
        np.arange(len(rows), dtype=np.int64) * 1_000_003 - seed,
        np.arange(len(rows), dtype=np.int64) % 5,
    )


def kept(scaled: npt.NDArray[np.float64], top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """Which tokens of one row may be drawn: min-p, then top-k, then top-p over what is left."""
    weights = np.exp(scaled - scaled.max())
    weights[weights < min_p] = 0
    order = np.argsort(-weights, kind="stable")
    if top_k > 0:
        weights[order[top_k:]] = 0
    shares = weights[order] / weights.sum()
    before = np.cumsum(shares) - shares
    if top_p < 1:
        weights[order[before >= top_p]] = 0
    return weights > 0


def expected_tokens(logits: torch.Tensor, batch: SamplingBatch) -> list[int]:
    """Gumbel-max, row by row, in float64."""
    noise = gumbel_noise(torch.from_numpy(batch.seeds), torch.from_numpy(batch.positions), logits.shape[1]).numpy()
    tokens = []
    for row, values in enumerate(logits.double().numpy()):
        if batch.temperature[row] == 0:
            tokens.append(int(values.argmax()))
            continue
        scaled = values / float(batch.temperature[row])
        mask = kept(scaled, int(batch.top_k[row]), float(batch.top_p[row]), float(batch.min_p[row]))
        tokens.append(int(np.where(mask, scaled + noise[row], -np.inf).argmax()))
    return tokens


@pytest.mark.parametrize("vocab", [5, 300, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_sample_equals_the_written_out_reference(sampler: Sampler, vocab: int, spread: float) -> None:
    rows = [
        (0.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.0),
        (0.6, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (2.0, 10_000, 1.0, 0.0),
        (0.7, 0, 0.9, 0.0),
        (1.5, 0, 0.05, 0.0),
        (1.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.2),
        (1.0, 0, 1.0, 1.0),
        (0.0, 5, 0.5, 0.5),
        (0.8, 40, 0.95, 0.05),
        (1.3, 2, 0.3, 0.01),
        (0.01, 0, 0.9, 0.0),
    ] * 3
    logits = torch.randn(len(rows), vocab) * spread
    batch = batch_of(rows, seed=int(torch.randint(0, 1000, ())))
    tokens, finite = sampler.sample(logits, batch)
    assert tokens.tolist() == expected_tokens(logits, batch)
    assert finite.all()


def test_sample_of_a_row_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    rows = [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.8, 20, 0.9, 0.0), (1.2, 0, 0.7, 0.1)] * 4
    logits = torch.randn(len(rows), 1000)
    batch = batch_of(rows)
    together = sampler.sample(logits, batch)[0]
    random = np.random.default_rng(torch.initial_seed())
    for _ in range(20):
        chosen = random.permutation(len(rows))[: random.integers(1, len(rows) + 1)]
        apart = sampler.sample(logits[torch.from_numpy(chosen)], batch.take(chosen))[0]
        assert torch.equal(apart, together[torch.from_numpy(chosen)])


# 99.9999 % quantiles of the chi-squared distribution, by degrees of freedom.
CHI_SQUARED_LIMIT = {1: 23.93, 2: 27.63, 3: 30.66, 9: 45.08}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (1.0, 0, 0.6, 0.0), (1.0, 0, 1.0, 0.3)],
)
@pytest.mark.parametrize("varied", ["positions", "seeds"])
def test_draws_follow_the_distribution(
    sampler: Sampler, temperature: float, top_k: int, top_p: float, min_p: float, varied: str
) -> None:
    num_draws = 20_000
    logits = torch.tensor([[1.0, 0.5, 0.0, 2.0, 1.5, -1.0, 0.7, 0.2, -0.5, 1.1]])
    batch = batch_of([(temperature, top_k, top_p, min_p)] * num_draws)
    batch.seeds = np.full(num_draws, 42) if varied == "positions" else np.arange(num_draws)
    batch.positions = np.arange(num_draws) if varied == "positions" else np.full(num_draws, 3)
    tokens, _ = sampler.sample(logits.expand(num_draws, -1).contiguous(), batch)
    scaled = logits[0].double().numpy() / temperature
    weights = np.where(kept(scaled, top_k, top_p, min_p), np.exp(scaled), 0)
    expected = weights / weights.sum() * num_draws
    counts = np.bincount(tokens.numpy(), minlength=10)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_squared = float((((counts - expected)[possible]) ** 2 / expected[possible]).sum())
    assert chi_squared < CHI_SQUARED_LIMIT[int(possible.sum()) - 1]


def test_neighbouring_positions_are_independent(sampler: Sampler) -> None:
    num_draws = 20_000
    batch = batch_of([(1.0, 0, 1.0, 0.0)] * num_draws)
    batch.seeds, batch.positions = np.full(num_draws, 1), np.arange(num_draws)
    tokens = sampler.sample(torch.zeros(num_draws, 2), batch)[0].numpy()
    pairs = np.bincount(tokens[::2] * 2 + tokens[1::2], minlength=4)
    assert float(((pairs - num_draws / 8) ** 2 / (num_draws / 8)).sum()) < CHI_SQUARED_LIMIT[3]


def test_sample_flags_rows_that_are_not_finite(sampler: Sampler) -> None:
    logits = torch.randn(6, 50)
    logits[1, 7] = float("nan")
    logits[2, 0] = float("inf")
    logits[4, 49] = float("-inf")
    rows = [(0.0, 0, 1.0, 0.0), (1.0, 3, 0.9, 0.1), (1.0, 0, 0.5, 0.0)] * 2
    tokens, finite = sampler.sample(logits, batch_of(rows))
    assert finite.tolist() == [True, False, False, True, False, True]
    assert ((tokens >= 0) & (tokens < 50)).all()


def test_ties_at_the_edge_of_top_k_stay_in(sampler: Sampler) -> None:
    num_draws = 200
    batch = batch_of([(1.0, 2, 1.0, 0.0)] * num_draws)
    tokens, _ = sampler.sample(torch.tensor([[3.0, 2.0, 2.0, 1.0]]).repeat(num_draws, 1), batch)
    assert set(tokens.tolist()) == {0, 1, 2}
