"""Fused sampling against the sampler that sorts, over fresh logits, all filters and odd vocabularies."""

import numpy as np
import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.kernels.triton_sampling import DeviceSampling, best_of_part, sample
from gpu_worker.parallel import split_vocab
from gpu_worker.sampling.parallel_sampler import pack_draws, unpack_draws
from gpu_worker.sampling.sampler import Sampler, SamplingBatch

# (temperature, top_k, top_p, min_p). The last ones keep more tokens than are gathered at once.
ROWS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 3, 1.0, 0.0),
    (0.6, 20, 0.95, 0.0),
    (0.7, 0, 0.9, 0.0),
    (1.5, 0, 0.05, 0.0),
    (1.0, 0, 0.999, 0.0),
    (1.0, 0, 1.0, 0.2),
    (1.0, 0, 1.0, 1.0),
    (1.0, 0, 0.5, 0.1),
    (0.0, 5, 0.5, 0.5),
    (0.8, 40, 0.95, 0.05),
    (1.3, 2, 0.3, 0.01),
    (0.01, 0, 0.9, 0.0),
    (2.0, 10_000, 1.0, 0.0),
    (3.0, 3_000, 0.8, 0.0),
    (3.0, 2_500, 1.0, 0.02),
]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.poison(monkeypatch)


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


def on_device(batch: SamplingBatch) -> DeviceSampling:
    return DeviceSampling(
        torch.from_numpy(batch.temperature).to(cases.DEVICE),
        torch.from_numpy(batch.top_k).int().to(cases.DEVICE),
        torch.from_numpy(batch.top_p).to(cases.DEVICE),
        torch.from_numpy(batch.min_p).to(cases.DEVICE),
        torch.from_numpy(batch.seeds).to(cases.DEVICE),
        torch.from_numpy(batch.positions).to(cases.DEVICE),
    )


def draw(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, finite = sample(logits.to(cases.DEVICE), on_device(batch), fast=cases.HAS_GPU, overlap=False)
    return tokens.cpu(), finite.cpu()


@pytest.mark.parametrize("vocab", [5, 300, 5003])
@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_sample_equals_the_sampler_that_sorts(vocab: int, spread: float) -> None:
    batch = batch_of(ROWS)
    logits = torch.randn(len(ROWS), vocab) * spread
    expected, _ = Sampler(ReferenceKernels()).sample(logits, batch)
    tokens, finite = draw(logits, batch)
    assert tokens.tolist() == expected.tolist()
    assert finite.all()


def test_sample_keeps_ties_at_the_edge_and_takes_the_first_of_equals() -> None:
    rows = [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.3, 0.0), (1.0, 0, 1.0, 1.0), (0.0, 0, 1.0, 0.0), (1.0, 2, 0.9, 0.5)]
    batch = batch_of(rows)
    # Few distinct values, so edges lie within ties.
    logits = torch.randint(0, 4, (len(rows), 1000)).float()
    expected, _ = Sampler(ReferenceKernels()).sample(logits, batch)
    tokens, _ = draw(logits, batch)
    assert tokens.tolist() == expected.tolist()
    assert tokens[3] == logits[3].eq(logits[3].max()).nonzero()[0, 0]


def test_sample_of_half_precision_logits_is_that_of_the_same_values() -> None:
    batch = batch_of(ROWS)
    logits = (torch.randn(len(ROWS), 700) * 3).half()
    assert draw(logits, batch)[0].tolist() == draw(logits.float(), batch)[0].tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_sample_flags_rows_that_are_not_finite(value: float) -> None:
    rows = [row for row in ROWS if row[1] < 100]
    logits = torch.randn(len(rows), 4500)
    bad = torch.arange(len(rows)) % 2 == 0
    logits[bad, torch.randint(0, 4500, (int(bad.sum()),))] = value
    batch = batch_of(rows)
    tokens, finite = draw(logits, batch)
    assert finite.tolist() == (~bad).tolist()
    assert ((tokens >= 0) & (tokens < 4500)).all()
    good = np.flatnonzero(~bad.numpy())
    assert tokens[~bad].tolist() == draw(logits[~bad], batch.take(good))[0].tolist()


def test_sample_of_all_nan_gives_a_token_of_the_vocabulary() -> None:
    batch = batch_of(ROWS[:8])
    tokens, finite = draw(torch.full((8, 300), float("nan")), batch)
    assert not finite.any()
    assert ((tokens >= 0) & (tokens < 300)).all()


def test_sample_with_a_tiny_temperature_is_greedy() -> None:
    batch = batch_of([(1e-30, 0, 0.9, 0.0), (1e-30, 5, 0.9, 0.0), (1e-30, 0, 1.0, 0.1), (1e-30, 0, 1.0, 0.0)])
    logits = -torch.rand(4, 700)
    assert draw(logits, batch)[0].tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(("vocab", "world_size"), [(49, 2), (5003, 3)])
def test_the_best_of_all_parts_is_the_draw_from_the_whole(vocab: int, world_size: int) -> None:
    rows = [row for row in ROWS if row[1:] == (0, 1.0, 0.0)] * 3
    batch = batch_of(rows)
    logits = torch.randn(len(rows), vocab) * 3
    logits[0] = logits[0].round()
    logits[1, vocab - 1] = float("nan")
    expected, expected_finite = draw(logits, batch)
    draws = []
    for rank in range(world_size):
        ids = split_vocab(vocab, rank, world_size)
        part = logits[:, ids.start : ids.stop].contiguous().to(cases.DEVICE)
        found = best_of_part(part, on_device(batch), ids.start, fast=cases.HAS_GPU, overlap=False)
        draws.append(pack_draws(*found))
    tokens, finite = unpack_draws(torch.stack(draws).amax(dim=0).cpu())
    assert finite.tolist() == expected_finite.tolist()
    assert tokens[finite].tolist() == expected[expected_finite].tolist()
