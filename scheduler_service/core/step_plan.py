"""One step while it is being put together, and what is remembered of it while it is at the workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pagewire.ipc.steps import AddedSequence, StepBatch
from scheduler_service.core.sequence import Sequence
from scheduler_service.core.slot_table import BoolArray, IntArray, SlotTable


@dataclass(slots=True)
class StepPlan:
    """The diff that the next StepBatch carries, beside what it computes. Collected between two steps."""

    removed: list[int] = field(default_factory=list)
    added: list[AddedSequence] = field(default_factory=list)
    block_slots: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)

    def add_sequence(self, sequence: Sequence, slot: int, num_computed: int) -> None:
        """The sequence takes a slot with the blocks it has now."""
        min_tokens = sequence.min_total_tokens - sequence.num_prompt_tokens
        self.added.append(
            AddedSequence(
                slot=slot,
                request_id=sequence.request_id,
                token_ids=sequence.token_ids.tobytes(),
                num_prompt_tokens=sequence.num_prompt_tokens,
                num_computed_tokens=num_computed,
                block_ids=_to_bytes(sequence.block_ids),
                sampling=sequence.sampling,
                min_tokens=min_tokens,
                cache_salt=sequence.cache_salt,
                end_token_ids=_to_bytes(sorted(sequence.stop_token_ids)) if min_tokens else b"",
                num_known_prompt_logprobs=sequence.num_known_prompt_logprobs,
                trace_context=sequence.trace_context,
            )
        )

    def add_block(self, slot: int, block_id: int) -> None:
        """The block table of a slot grows by one block."""
        self.block_slots.append(slot)
        self.block_ids.append(block_id)

    def drop_slot(self, slot: int) -> None:
        """The slot was released: the workers forget it before anything else."""
        assert slot not in self.block_slots, "a slot grew and was released within one step"
        self.removed.append(slot)

    def to_batch(self, step_id: int, slots: IntArray, num_tokens: IntArray, sampled: BoolArray) -> StepBatch:
        """The message for the workers. sampled: [len(slots)]."""
        return StepBatch(
            step_id=step_id,
            removed=_to_bytes(self.removed),
            added=self.added,
            block_slots=_to_bytes(self.block_slots),
            block_ids=_to_bytes(self.block_ids),
            slots=slots.tobytes(),
            num_tokens=num_tokens.tobytes(),
            sampled=sampled.astype(np.uint8).tobytes(),
        )


@dataclass(slots=True, frozen=True)
class StepInFlight:
    """A step at the workers: which slots it computes, how far each is afterwards, and who draws a token.

    slots, num_computed: [n]; is_sampled: [n], true for those in `sampled`. `slot_bytes` are `slots` as bytes;
    `num_tokens` are computed in all; sent at `sent_s` (monotonic).
    """

    step_id: int
    slots: IntArray
    num_computed: IntArray
    is_sampled: BoolArray
    sampled: list[Sequence]
    slot_bytes: bytes
    num_tokens: int
    sent_s: float

    def sequences(self, table: SlotTable) -> Iterator[tuple[Sequence, int]]:
        """The step's sequences, and how many tokens of each are computed after it."""
        for slot, num_computed in zip(self.slots.tolist(), self.num_computed.tolist(), strict=True):
            if (sequence := table.sequences[slot]) is not None:
                yield sequence, num_computed


def _to_bytes(values: list[int]) -> bytes:
    return np.array(values, dtype=np.int32).tobytes()
