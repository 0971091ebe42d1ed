"""What do the GPUs of one host write directly into each other's memory? Rows to be summed.

NCCL's all-reduce of a decode step's few rows is latency alone, and a kernel more for each half of a layer.
"""

import logging
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gpu_worker.parallel import ParallelGroup
from gpu_worker.process_group import first_line

logger = logging.getLogger(__name__)

_SLOTS = 2
_MAX_WORLD_SIZE = 8
# Of more rows, NCCL's rings move fewer bytes; but not between two.
_MAX_ROWS = 256
_MAX_ROWS_OF_TWO = 8192
# Captured steps are padded to a multiple of at most this.
_ROWS_STEP = 512
# All bits of an element that is still to come: a NaN that no rank writes.
_ABSENT = -1
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """This rank's memory that all ranks write to, and where theirs is.

    What a rank has not written yet is absent: its bits are all 1. Who reads an element makes it absent again. Two slots
    are used in turns: who writes to one a second time has met the others in the other one meanwhile, so they have read
    what was there, and made it absent.

    Attributes:
        rank: this rank.
        parts: [2, world_size, max_rows, hidden], where each rank puts its rows.
        addresses: of every rank's `parts`.
        mapping: keeps the others' memory in this process's reach.
    """

    rank: int
    parts: torch.Tensor
    addresses: tuple[int, ...]
    mapping: object = None

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.parts.shape[1]

    @property
    def max_rows(self) -> int:
        """How many there is room for."""
        return self.parts.shape[2]

    def takes(self, rows: torch.Tensor) -> bool:
        """Whether [num_tokens, hidden] has room."""
        return len(rows) <= self.max_rows and rows.shape[1] == self.parts.shape[3] and rows.dtype == self.parts.dtype


def most_rows(world_size: int) -> int:
    """How many rows such a group sums in its memory at most; those of longer steps are summed by NCCL."""
    return _MAX_ROWS_OF_TWO if world_size == 2 else _MAX_ROWS


def part_shape(world_size: int, max_tokens: int, hidden: int) -> tuple[int, int, int, int]:
    """Of PeerMemory.parts, for steps of up to max_tokens, which may be padded."""
    padded = -(-max_tokens // _ROWS_STEP) * _ROWS_STEP
    return (_SLOTS, world_size, min(padded, most_rows(world_size)), hidden)


def clear(parts: torch.Tensor) -> torch.Tensor:
    """Make all elements absent; returns the same tensor."""
    parts.view(_BITS[parts.itemsize]).fill_(_ABSENT)
    return parts


def open_peer_memory(
    parallel: ParallelGroup, max_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> PeerMemory | None:
    """For steps of up to max_tokens, called by all ranks together.

    None: there is one rank, or their GPUs cannot write into each other's memory.
    """
    if device.type != "cuda" or not 1 < parallel.world_size <= _MAX_WORLD_SIZE:
        return None
    memory, obstacle = None, ""
    try:
        memory = _open(parallel, part_shape(parallel.world_size, max_tokens, hidden), dtype, device)
    except (ImportError, RuntimeError) as error:
        obstacle = first_line(error)
    # All do the same, or none; and nobody writes what is still to be cleared.
    has_failed = parallel.all_reduce_max(torch.tensor([memory is None], dtype=torch.int32, device=device))
    if bool(has_failed):
        logger.info("ranks sum through NCCL alone reason=%s", obstacle or "another rank cannot do otherwise")
        return None
    return memory


def _open(parallel: ParallelGroup, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerMemory:
    # Ranks write to one another one by one; setting up more than that fails on some hosts.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    # Not every build of torch has it.
    from torch.distributed import _symmetric_memory as symmetric_memory  # noqa: PLC0415

    assert dist.group.WORLD is not None
    parts = clear(symmetric_memory.empty(*shape, dtype=dtype, device=device))
    handle = symmetric_memory.rendezvous(parts, dist.group.WORLD.group_name)
    addresses = tuple(handle.get_buffer(rank, shape, dtype).data_ptr() for rank in range(parallel.world_size))
    return PeerMemory(parallel.rank, parts, addresses, handle)
