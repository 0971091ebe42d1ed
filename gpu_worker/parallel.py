"""Which part of the model is this rank's, and how do ranks add up their parts?"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from gpu_worker.formats.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class ParallelGroup:
    """The tensor-parallel ranks. With world size 1 nothing is communicated.

    For a larger world torch.distributed's default process group must be set up first.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in 0 .. {self.world_size - 1}")

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum x over all ranks, in place where there is more than one; every rank gets the sum."""
        if self.world_size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Put all ranks' x side by side along the last dimension; x has the same shape on every rank."""
        if self.world_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """Query and key/value heads of one rank. Each rank's key/value heads serve the same number of its query heads."""

    query: range
    kv: range


def split(size: int, rank: int, world_size: int) -> range:
    """This rank's part of `size` rows, ranks differing by at most one row: their partial products are summed."""
    return range(rank * size // world_size, (rank + 1) * size // world_size)


def split_vocab(vocab: int, rank: int, world_size: int) -> range:
    """This rank's token ids: ceil(vocab / world_size) each, the last ranks fewer, so that logits can be gathered."""
    per_rank = -(-vocab // world_size)
    return range(min(rank * per_rank, vocab), min((rank + 1) * per_rank, vocab))


def split_heads(num_heads: int, num_kv_heads: int, rank: int, world_size: int) -> HeadSplit:
    """This rank's heads.

    With at least as many key/value heads as ranks, each rank takes whole groups (a key/value head and the query heads
    that read it). With fewer, several ranks hold the same key/value head and share its query heads:

        6 query heads, 1 key/value head, 3 ranks:   0 1 | 2 3 | 4 5   all with key/value head 0
        9 query heads, 3 key/value heads, 2 ranks:  0 1 2 | 3 4 5 6 7 8   with 0 | 1 2

    Raises:
        ModelLoadError: a rank would have no query head.
    """
    group = num_heads // num_kv_heads
    if num_kv_heads >= world_size:
        kv = split(num_kv_heads, rank, world_size)
        return HeadSplit(range(kv.start * group, kv.stop * group), kv)
    owners = [r * num_kv_heads // world_size for r in range(world_size)]
    head = owners[rank]
    part = split(group, rank - owners.index(head), owners.count(head))
    if not part:
        raise ModelLoadError(
            f"{num_heads} query heads ({num_kv_heads} KV heads) cannot be split over {world_size} ranks: use fewer"
        )
    return HeadSplit(range(head * group + part.start, head * group + part.stop), range(head, head + 1))
