"""How long do two GPUs take to sum rows, add them to the residual stream and normalise them, in a captured graph?

By NCCL and the kernel after it, and in one launch that writes into the other GPU's memory. Prints microseconds for
some numbers of rows.

    python -m benchmarks.peer_sums [--hidden 4096]
"""

import argparse
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.kernels import time_each_us
from gpu_worker.kernels.select import select_kernels, select_peer_sum
from gpu_worker.parallel import ParallelGroup

WORLD_SIZE = 2
DTYPE = torch.bfloat16
EPS = 1e-6
NUM_ROWS = (1, 8, 64, 128, 256, 512, 2048, 8192)
# As in a step of a model of 36 layers.
SUMS_PER_STEP = 72


def run_rank(rank: int, store: str, hidden: int) -> None:
    """Measure beside the other rank; the first one prints."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE, device_id=device)
    parallel, kernels = ParallelGroup(rank, WORLD_SIZE), select_kernels(device, None)
    peer_sum = select_peer_sum(parallel, max(NUM_ROWS), hidden, DTYPE, device, shares_host=True)
    assert peer_sum is not None, "these GPUs cannot write into each other's memory"
    weight = torch.ones(hidden, device=device, dtype=DTYPE)
    for num_rows in NUM_ROWS:
        part = torch.randn(num_rows, hidden, device=device).to(DTYPE)
        residual = torch.zeros(num_rows, hidden, device=device)
        nccl_us = time_each_us(
            lambda _, x=part, y=residual: kernels.add_rms_norm(parallel.all_reduce(x), y, weight, EPS),  # type: ignore[misc]
            range(SUMS_PER_STEP),
        )
        peer_us = time_each_us(
            lambda number, x=part, y=residual: peer_sum(x, y, weight, EPS, number % 2),  # type: ignore[misc]
            range(SUMS_PER_STEP),
        )
        if rank == 0:
            print(
                f"{num_rows:5d} rows   NCCL, then the norm {nccl_us:6.1f} us   one launch {peer_us:6.1f} us", flush=True
            )
    dist.destroy_process_group()


def main() -> None:
    """Parse flags, start both ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096, help="width of a row")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_rank, (f"{folder}/store", parser.parse_args().hidden), nprocs=WORLD_SIZE)


if __name__ == "__main__":
    main()
