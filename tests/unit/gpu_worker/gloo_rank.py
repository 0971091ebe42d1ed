"""What does one process of a two-rank group do in the test of real communication? (Apart, to start fast.)"""

from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist

from gpu_worker.parallel import ParallelGroup


def run_gloo_rank(
    rank: int, store: str, results: "SimpleQueue[tuple[list[float], list[list[float]], list[float]]]"
) -> None:
    """Sum and gather with the other rank, and report what came out."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = ParallelGroup(rank, 2)
    summed = group.all_reduce(torch.tensor([1.0, 10.0]) * (rank + 1))
    gathered = group.all_gather(torch.tensor([[float(rank)], [rank + 5.0]]).expand(2, 2))
    # In bfloat16 a sum of these is not kept.
    ordered = group.sum_in_order(torch.tensor([[1.0, 2.0**-9], [2.0**-9, 0.0]])[rank][None].bfloat16())
    results.put((summed.tolist(), gathered.tolist(), ordered[0].tolist()))
    dist.destroy_process_group()
