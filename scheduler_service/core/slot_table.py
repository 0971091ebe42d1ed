"""The numbers that change every step, one row per slot, as arrays: stepping 256 sequences is a few array operations."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler_service.core.sequence import Sequence

IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]


@dataclass(slots=True)
class SlotTable:
    """State of the sequences that hold a slot. All arrays are [max_num_seqs] int32.

        tokens of a slot:  | computed, or in a step in flight | known or promised | to come          |
                           0                          num_computed          num_tokens          max_tokens

    A promised token is one that a step in flight will return: it is counted before its id is known.

        num_blocks    length of the slot's block table
        num_cached    leading blocks offered to the prefix cache so far
        in_flight     steps at the workers that compute this slot
    """

    max_num_seqs: int
    num_computed: IntArray = field(init=False)
    num_tokens: IntArray = field(init=False)
    max_tokens: IntArray = field(init=False)
    num_blocks: IntArray = field(init=False)
    num_cached: IntArray = field(init=False)
    in_flight: IntArray = field(init=False)
    sequences: list[Sequence | None] = field(init=False)
    _free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("num_computed", "num_tokens", "max_tokens", "num_blocks", "num_cached", "in_flight"):
            setattr(self, name, np.zeros(self.max_num_seqs, dtype=np.int32))
        self.sequences = [None] * self.max_num_seqs
        self._free = list(range(self.max_num_seqs - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    @property
    def num_tokens_to_compute(self) -> int:
        """Known tokens that no step computes yet, without the one that each slot decodes next. May be called in any
        thread."""
        return int(np.maximum(self.num_tokens - self.num_computed - 1, 0).sum())

    def split_decodes(self, slots: IntArray, block_size: int) -> tuple[IntArray, IntArray]:
        """Of these, the slots with one token to compute: those that have a block for it, and those that lack one."""
        num_tokens = self.num_tokens[slots]
        num_computed = self.num_computed[slots]
        # A sequence's last token is never computed: nothing is drawn after it.
        is_decode: BoolArray = (num_tokens - num_computed == 1) & (num_tokens < self.max_tokens[slots])
        has_block: BoolArray = num_computed < self.num_blocks[slots] * block_size
        return slots[is_decode & has_block], slots[is_decode & ~has_block]

    def take(self, sequence: Sequence, num_computed: int, num_cached: int) -> int:
        """Give the sequence a slot; its blocks are those in its block table."""
        slot = self._free.pop()
        self.sequences[slot] = sequence
        self.num_computed[slot] = num_computed
        self.num_tokens[slot] = len(sequence.token_ids)
        self.max_tokens[slot] = sequence.max_total_tokens
        self.num_blocks[slot] = len(sequence.block_ids)
        self.num_cached[slot] = num_cached
        self.in_flight[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Take the slot back."""
        assert self.sequences[slot] is not None, f"slot {slot} released twice"
        self.sequences[slot] = None
        self.num_tokens[slot] = self.num_computed[slot] = 0
        self._free.append(slot)
