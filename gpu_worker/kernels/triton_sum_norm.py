"""How are the parts of all ranks summed, added to the residual stream and normalised, in one launch?

One program has the same rows on every rank. It writes its rank's part of them into the memory of all others, and reads
what they write into its own until nothing is absent: there are no flags, so nobody waits until what was written before
a flag has arrived. It writes one row ahead of the one that it waits for, so that the links between the GPUs and their
memory are busy at the same time. There are no more programs than run at a time, so that no rank waits for a program
that waits for room. All ranks add in the order of ranks, so that they get the same bits.
"""

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import check_contiguous, device_function, kernel, row_shape, wait_for_inputs
from gpu_worker.kernels.triton_norm import store_normed
from gpu_worker.peer_memory import PeerMemory

_BITS = {2: tl.int16, 4: tl.int32}
# Of all programs that share a multiprocessor: their registers have room. Each rank more takes some.
_MAX_ELEMENTS, _MAX_ELEMENTS_OF_TWO, _MAX_PROGRAMS = 4096, 8192, 16


class PeerSum:
    """Ranks that sum rows in each other's memory. All make the same calls in the same order.

    Args:
        memory: that the ranks share.
        overlap: whether launches may begin before their predecessors end.
        num_multiprocessors: of the device.
    """

    def __init__(self, memory: PeerMemory, overlap: bool, num_multiprocessors: int) -> None:
        self._memory = memory
        self._overlap = overlap
        self._num_multiprocessors = num_multiprocessors

    def takes(self, part: torch.Tensor) -> bool:
        """Whether there is room for [num_tokens, hidden]."""
        return self._memory.takes(part)

    def __call__(
        self, part: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, slot: int
    ) -> torch.Tensor:
        """Add the sum of all ranks' parts to residual in place, and return the RMS norm of that, in the weight's dtype.

        Args:
            part: [num_tokens, hidden], every rank's own.
            residual: [num_tokens, hidden] float32.
            weight: [hidden].
            slot: 0 and 1 in turns.
        """
        check_contiguous(part, residual, weight)
        assert residual.shape == part.shape
        assert residual.dtype is torch.float32
        memory, out = self._memory, torch.empty_like(part, dtype=weight.dtype)
        rows, size = part.shape
        block, warps = row_shape(size)
        elements = _MAX_ELEMENTS_OF_TWO if memory.world_size == 2 else _MAX_ELEMENTS
        max_programs = self._num_multiprocessors * min(max(1, elements // block), _MAX_PROGRAMS)
        _sum_norm_kernel[(min(rows, max_programs),)](
            part,
            residual,
            weight,
            out,
            memory.addresses,
            eps,
            rows,
            slot,
            RANK=memory.rank,
            WORLD=memory.world_size,
            ROWS=memory.max_rows,
            SIZE=size,
            BLOCK=block,
            BITS=_BITS[part.itemsize],
            OVERLAP=self._overlap,
            num_warps=warps,
            launch_pdl=self._overlap,
        )
        return out


@kernel("num_rows", "slot")
def _sum_norm_kernel(
    part_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    addresses: tl.tuple,
    eps: float,
    num_rows: int,
    slot: int,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """part, residual, out: [num_tokens, SIZE]; weight: [SIZE]; addresses: of every rank's parts."""
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    step = tl.num_programs(0)
    for ahead in range(tl.program_id(0), num_rows + step, step):
        if ahead < num_rows:
            part = tl.load(part_ptr + ahead * SIZE + columns, mask=inside, other=0.0)
            # A NaN that reads as absent becomes another one.
            bits = part.to(BITS, bitcast=True)
            bits = tl.where(bits == -1, bits ^ (-1 << (BITS.primitive_bitwidth - 1)), bits)
            for other in tl.static_range(WORLD):
                if other != RANK:
                    theirs = _part_of(addresses[other], RANK, ahead, slot, BITS, WORLD, ROWS, SIZE)
                    tl.store(theirs + columns, bits, inside)
        row = ahead - step
        if row >= 0:
            place = row * SIZE + columns
            own = tl.load(part_ptr + place, mask=inside, other=0.0).to(tl.float32)
            total = tl.load(residual_ptr + place, mask=inside, other=0.0)
            sum_of_parts = tl.zeros((BLOCK,), tl.float32)
            for rank in tl.static_range(WORLD):
                if rank == RANK:
                    sum_of_parts += own
                else:
                    bits = _take(_part_of(addresses[RANK], rank, row, slot, BITS, WORLD, ROWS, SIZE) + columns, inside)
                    sum_of_parts += bits.to(part_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
            total += sum_of_parts
            tl.store(residual_ptr + place, total, mask=inside)
            store_normed(out_ptr, place, inside, total, weight, eps, SIZE)


@device_function
def _part_of(
    address: tl.tensor,
    writer: tl.constexpr,
    row: tl.tensor,
    slot: tl.tensor,
    BITS: tl.constexpr,
    WORLD: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
) -> tl.tensor:
    """Where, in the memory at this address, `writer` puts a row."""
    parts = tl.multiple_of(address.to(tl.pointer_type(BITS)), 16)
    return parts + ((slot * WORLD + writer) * ROWS + row) * SIZE


@device_function
def _take(ptrs: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Wait until nothing is absent, and leave all absent."""
    bits = tl.load(ptrs, mask=inside, other=0, volatile=True)
    while tl.max((bits == -1).to(tl.int32), axis=0) > 0:
        bits = tl.load(ptrs, mask=inside, other=0, volatile=True)
    tl.store(ptrs, tl.full(bits.shape, -1, bits.dtype), mask=inside)
    return bits
