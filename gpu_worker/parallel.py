"""Which part of the model is this rank's, and how do ranks put their parts together?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.models.config import ModelConfig

# Token ids are dealt out in multiples of this: the noise of four comes from one counter, and matrix products like it.
_VOCAB_MULTIPLE = 16
# torch 2.13 renamed it.
_gather: Callable[[torch.Tensor, torch.Tensor], object] = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)


class RanksLostError(Exception):
    """The ranks cannot compute together any more; the message says why."""


@dataclass(frozen=True, slots=True)
class ParallelGroup:
    """The tensor-parallel ranks. With world size 1 nothing is communicated.

    For a larger world torch.distributed's default process group must be set up first. All ranks make the same calls in
    the same order, with tensors of the same shape; on a GPU CUDA graphs can capture them.

    Raises:
        RanksLostError: from any communication: another rank is gone, or does not come.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in 0 .. {self.world_size - 1}")

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum x over all ranks, in place where there is more than one; every rank gets the sum."""
        if self.world_size > 1:
            with _explained():
                dist.all_reduce(x)
        return x

    def sum_in_order(self, x: torch.Tensor) -> torch.Tensor:
        """Sum x over all ranks in their order, so that a row's bits do not depend on the rows beside it: in float32."""
        if self.world_size == 1:
            return x
        first, *others = self._gather_parts(x).unbind()
        total = first.float()
        for part in others:
            total += part
        return total

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        """Take the largest of all ranks, element by element, in place; every rank gets it."""
        if self.world_size > 1:
            with _explained():
                dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrite x with that of rank 0."""
        if self.world_size > 1:
            with _explained():
                dist.broadcast(x, src=0)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """Put all ranks' matrices side by side: [rows, columns] -> [rows, world_size * columns]."""
        if self.world_size == 1:
            return x
        return self._gather_parts(x).transpose(0, 1).reshape(x.shape[0], -1)

    def _gather_parts(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, columns] of each rank -> [world_size, rows, columns]."""
        rows, columns = x.shape
        parts = x.new_empty((self.world_size * rows, columns))
        with _explained():
            _gather(parts, x.contiguous())
        return parts.view(self.world_size, rows, columns)


@dataclass(frozen=True, slots=True)
class VocabPart:
    """The vocabulary, of which each rank has some token ids in a row."""

    parallel: ParallelGroup
    vocab_size: int

    @property
    def token_ids(self) -> range:
        """This rank's."""
        return split_vocab(self.vocab_size, self.parallel.rank, self.parallel.world_size)

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        """Every rank's logits, [num_sampled, this rank's token ids] -> [num_sampled, vocab]; contiguous."""
        if self.parallel.world_size == 1:
            return logits
        most = len(split_vocab(self.vocab_size, 0, self.parallel.world_size))
        if logits.shape[1] < most:
            logits = F.pad(logits, (0, most - logits.shape[1]))
        return self.parallel.all_gather(logits)[:, : self.vocab_size].contiguous()


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """Query and key/value heads of one rank. Each rank's key/value heads serve the same number of its query heads."""

    query: range
    kv: range


def split(size: int, rank: int, world_size: int) -> range:
    """This rank's part of `size` rows, ranks differing by at most one row: their partial products are summed."""
    return range(rank * size // world_size, (rank + 1) * size // world_size)


def split_vocab(vocab: int, rank: int, world_size: int) -> range:
    """This rank's token ids: the same multiple of 16 on each rank, on the last ones fewer or, of a tiny one, none."""
    per_rank = -(-vocab // (world_size * _VOCAB_MULTIPLE)) * _VOCAB_MULTIPLE
    return range(min(rank * per_rank, vocab), min((rank + 1) * per_rank, vocab))


def split_heads(num_heads: int, num_kv_heads: int, rank: int, world_size: int) -> HeadSplit:
    """This rank's heads.

    With at least as many key/value heads as ranks, each rank takes whole groups (a key/value head and the query heads
    that read it). With fewer, several ranks hold the same key/value head and share its query heads:

        6 query heads, 1 key/value head, 3 ranks:   0 1 | 2 3 | 4 5   all with key/value head 0
        9 query heads, 3 key/value heads, 2 ranks:  0 1 2 | 3 4 5 6 7 8   with 0 | 1 2

    There must be no more ranks than query heads, see `check_split`.
    """
    group = num_heads // num_kv_heads
    if num_kv_heads >= world_size:
        kv = split(num_kv_heads, rank, world_size)
        return HeadSplit(range(kv.start * group, kv.stop * group), kv)
    owners = [r * num_kv_heads // world_size for r in range(world_size)]
    head = owners[rank]
    part = split(group, rank - owners.index(head), owners.count(head))
    return HeadSplit(range(head * group + part.start, head * group + part.stop), range(head, head + 1))


def check_split(config: ModelConfig, world_size: int) -> None:
    """Can every rank have a part of everything?

    Raises:
        ModelLoadError: no; the message says for how many ranks there is enough.
    """
    if world_size > config.num_heads:
        even = ", ".join(str(size) for size in even_sizes(config))
        raise ModelLoadError(
            f"{config.num_heads} query heads ({config.num_kv_heads} KV heads) cannot be split over {world_size} ranks: "
            f"--tensor-parallel-size can be 1 to {config.num_heads}, and {even} keep all ranks equally busy"
        )
    has_tokens = len(split_vocab(config.vocab_size, world_size - 1, world_size)) > 0
    if world_size > config.intermediate_size or not has_tokens:
        raise ModelLoadError(
            f"an intermediate size of {config.intermediate_size} and a vocabulary of {config.vocab_size} are too small "
            f"for {world_size} ranks: lower --tensor-parallel-size"
        )


def even_sizes(config: ModelConfig) -> list[int]:
    """The numbers of ranks that give each the same number of query heads, and of key/value heads."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    return [
        size for size in range(1, heads + 1) if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    ]


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line what a communication library says in several."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("] ")[2] or str(error)
        raise RanksLostError(f"the other ranks are gone or hang: {reason.partition('. ')[0]}") from error
