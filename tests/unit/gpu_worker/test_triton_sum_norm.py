"""Ranks that sum their parts in each other's memory, against the torch reference: as processes with shared memory."""

import pytest
import torch
import torch.multiprocessing as multiprocessing

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.kernels.triton_sum_norm import PeerSum
from gpu_worker.peer_memory import PeerMemory, clear, part_shape

pytestmark = pytest.mark.skipif(cases.HAS_GPU, reason="GPUs write to GPUs: tests/gpu/test_peer_sums.py")

WORLD_SIZE, HIDDEN, EPS = 3, 100, 1e-5
# Some have several rows for each program.
ROWS = (1, 70, 2, 66)


def inputs(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A rank's parts, and the residual before each."""
    draw = torch.Generator().manual_seed(rank)
    shared = torch.Generator().manual_seed(WORLD_SIZE)
    return [(torch.randn(rows, HIDDEN, generator=draw), torch.randn(rows, HIDDEN, generator=shared)) for rows in ROWS]


def open_memory(rank: int, parts: list[torch.Tensor]) -> PeerSum:
    memory = PeerMemory(rank, parts[rank], tuple(tensor.data_ptr() for tensor in parts))
    return PeerSum(memory, overlap=False, num_multiprocessors=1)


def run_rank(rank: int, parts: list[torch.Tensor], results: torch.Tensor) -> None:
    peer_sum = open_memory(rank, parts)
    for number, (part, residual) in enumerate(inputs(rank)):
        normed = peer_sum(part, residual, torch.ones(HIDDEN), EPS, number % 2)
        results[rank, number, 0, : len(part)], results[rank, number, 1, : len(part)] = normed, residual


def run_rank_with_nan(rank: int, parts: list[torch.Tensor], results: torch.Tensor) -> None:
    """Rank 0 has a NaN whose bits are those of what is still to come."""
    part = torch.ones(1, HIDDEN)
    if rank == 0:
        clear(part[:, :1])
    results[rank] = open_memory(rank, parts)(part, torch.zeros(1, HIDDEN), torch.ones(HIDDEN), EPS, 0)


def test_ranks_get_the_sum_of_all_parts_added_and_normalised() -> None:
    parts = [clear(torch.empty(part_shape(WORLD_SIZE, max(ROWS), HIDDEN))).share_memory_() for _ in range(WORLD_SIZE)]
    results = torch.full((WORLD_SIZE, len(ROWS), 2, max(ROWS), HIDDEN), torch.nan).share_memory_()
    multiprocessing.spawn(run_rank, (parts, results), nprocs=WORLD_SIZE)
    cases_of_ranks = [inputs(rank) for rank in range(WORLD_SIZE)]
    for number, rows in enumerate(ROWS):
        total = torch.stack([case[number][0] for case in cases_of_ranks]).sum(dim=0)
        residual = cases_of_ranks[0][number][1].clone()
        first, *others = (case[number][0] for case in cases_of_ranks)
        in_order = residual + sum(others, first)
        normed = ReferenceKernels().add_rms_norm(total, residual, torch.ones(HIDDEN), EPS)
        for rank in range(WORLD_SIZE):
            torch.testing.assert_close(results[rank, number, 0, :rows], normed, rtol=3e-6, atol=3e-6)
            torch.testing.assert_close(results[rank, number, 1, :rows], residual, rtol=3e-6, atol=3e-6)
            # To the bit, on all ranks, as one after the other.
            assert torch.equal(results[rank, number, :, :rows], results[0, number, :, :rows])
            assert torch.equal(results[rank, number, 1, :rows], in_order)
    # Nothing is left for the next sum to read.
    assert all((part.view(torch.int32) == -1).all() for part in parts)


def test_a_nan_arrives_whatever_its_bits() -> None:
    parts = [clear(torch.empty(part_shape(WORLD_SIZE, max(ROWS), HIDDEN))).share_memory_() for _ in range(WORLD_SIZE)]
    results = torch.zeros(WORLD_SIZE, 1, HIDDEN).share_memory_()
    multiprocessing.spawn(run_rank_with_nan, (parts, results), nprocs=WORLD_SIZE)
    assert results.isnan().all()
    assert all((part.view(torch.int32) == -1).all() for part in parts)
