"""How do tests run several ranks in one process? As threads that exchange tensors at a barrier."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from gpu_worker.parallel import ParallelGroup
from tests.fakes.patience import PATIENCE_S

Result = TypeVar("Result")


class Exchange:
    """Where ranks that are threads of one process meet."""

    def __init__(self, world_size: int) -> None:
        self._parts: list[torch.Tensor | None] = [None] * world_size
        self._barrier = threading.Barrier(world_size, timeout=PATIENCE_S)

    def collect(self, rank: int, part: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's part."""
        self._parts[rank] = part.clone()
        self._barrier.wait()
        parts = [part for part in self._parts if part is not None]
        self._barrier.wait()
        return parts


@dataclass(frozen=True)
class ThreadGroup(ParallelGroup):
    """A rank that is a thread."""

    exchange: Exchange = field(default_factory=lambda: Exchange(1))

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self.exchange.collect(self.rank, x)).sum(0))

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self.exchange.collect(self.rank, x)).amax(0))

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(self.exchange.collect(self.rank, x)[0])

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.exchange.collect(self.rank, x), dim=-1)


def run_ranks(world_size: int, run: Callable[[ThreadGroup], Result]) -> list[Result]:
    """What each rank returns."""
    exchange = Exchange(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: run(ThreadGroup(rank, world_size, exchange)), range(world_size)))
