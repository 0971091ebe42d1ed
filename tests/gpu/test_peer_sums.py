"""GPUs that sum their parts in each other's memory, against NCCL and the torch reference, captured and replayed."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from gpu_worker.kernels.reference import ReferenceKernels
from gpu_worker.kernels.select import select_peer_sum
from gpu_worker.parallel import ParallelGroup

if TYPE_CHECKING:
    from gpu_worker.kernels.triton_sum_norm import PeerSum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
]

WORLD_SIZE, MAX_TOKENS, HIDDEN, EPS = 2, 5000, 4096, 1e-6
NUM_REPLAYS = 30
NUM_ROWS = (1, 7, 64, 300, 2048, MAX_TOKENS, 5)


def run_rank(rank: int, store: str, dtype: torch.dtype, results: torch.Tensor) -> None:
    warnings.simplefilter("ignore")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE, device_id=device)
    peer_sum = select_peer_sum(ParallelGroup(rank, WORLD_SIZE), MAX_TOKENS, HIDDEN, dtype, device, shares_host=True)
    assert peer_sum is not None
    weight = torch.rand(HIDDEN, device=device, generator=torch.Generator(device).manual_seed(7)).to(dtype)
    for number, num_rows in enumerate(NUM_ROWS):
        replay_sums(peer_sum, num_rows, weight, results[rank, number])
    dist.destroy_process_group()


def replay_sums(peer_sum: "PeerSum", num_rows: int, weight: torch.Tensor, results: torch.Tensor) -> None:
    parts = torch.randn(2, num_rows, HIDDEN, device=weight.device).to(weight.dtype)
    residual = torch.zeros(num_rows, HIDDEN, device=weight.device)
    assert peer_sum.takes(parts[0])

    def step() -> torch.Tensor:
        peer_sum(parts[0], residual, weight, EPS, 0)
        return peer_sum(parts[1], residual, weight, EPS, 1)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        normed = step()
    expected = torch.zeros_like(residual)
    for number in range(NUM_REPLAYS):
        parts.copy_(torch.randn(2, num_rows, HIDDEN, device=weight.device))
        residual.zero_()
        graph.replay()
        totals = parts.float()
        dist.all_reduce(totals)
        expected.zero_()
        for total in totals:
            expected_normed = ReferenceKernels().add_rms_norm(total, expected, weight, EPS)
        torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normed, expected_normed, rtol=1e-2, atol=1e-2)
        results[number, 0], results[number, 1] = residual[-1].cpu(), normed[-1].float().cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpus_get_the_same_sum_whenever_it_is_replayed(dtype: torch.dtype, tmp_path: Path) -> None:
    results = torch.full((WORLD_SIZE, len(NUM_ROWS), NUM_REPLAYS, 2, HIDDEN), torch.nan).share_memory_()
    multiprocessing.spawn(run_rank, (str(tmp_path / "store"), dtype, results), nprocs=WORLD_SIZE)
    assert torch.equal(results[0], results[1])
    assert results.isfinite().all()
