"""What do the scheduler's slots hold, and which numbers does the next step compute on?

Every sequence has a slot. Its counts, block table and sampling parameters are mirrored here, on the host; its token ids
are on the device (DeviceSlots), where a drawn token is stored without ever visiting the host. A step's numbers come out
of a few vectorised operations over the slots, however many sequences there are:

    slots        3   7   1                  of the step, sequences with one token first
    num_tokens   1   1   4
    rows         0   1   2  3  4  5         of the model's input
    query_start  0   1   2           6
"""

import msgspec
import numpy as np
import numpy.typing as npt

from gpu_worker.prompt_rows import PromptRows
from gpu_worker.sampling.logprobs import NO_LOGPROB_ROWS, LogprobBatch
from gpu_worker.sampling.penalties import NO_PENALTY_ROWS, PenaltyBatch
from gpu_worker.sampling.sampler import SamplingBatch
from gpu_worker.sampling.token_rules import RuledRow, SlotRules
from gpu_worker.step_inputs import IntArray, SlotShape, StepInputs, Writes
from pagewire.ipc.steps import AddedSequence, LeftSequence, StepBatch

# 16 MiB, a quarter of the longest message.
_MOST_LEFT_TOKENS = 1 << 22


class StepBatchError(Exception):
    """A step batch contradicts the slots: scheduler and worker no longer agree, and the worker must start over."""


class InputBatch:
    """The worker's mirror of the scheduler's slots.

    Args:
        num_blocks: KV blocks in the pool; block ids are below it.
    """

    def __init__(self, shape: SlotShape, num_blocks: int) -> None:
        self._shape = shape
        self._num_blocks = num_blocks
        num_slots = shape.max_num_seqs
        self._block_tables = np.zeros((num_slots, shape.max_blocks), dtype=np.int32)
        self._used = np.zeros(num_slots, dtype=np.bool_)
        self._num_prompt = np.zeros(num_slots, dtype=np.int64)
        self._num_tokens = np.zeros(num_slots, dtype=np.int64)
        self._num_computed = np.zeros(num_slots, dtype=np.int64)
        self._table_lens = np.zeros(num_slots, dtype=np.int64)
        # Tokens that the logits of the last draw came from; meaningless where some logits were not finite.
        self._num_sure = np.zeros(num_slots, dtype=np.int64)
        self._is_ill = np.zeros(num_slots, dtype=np.bool_)
        self._cache_salts = [""] * num_slots
        self._sampling = SamplingBatch(
            temperature=np.zeros(num_slots, dtype=np.float32),
            top_k=np.zeros(num_slots, dtype=np.int64),
            top_p=np.ones(num_slots, dtype=np.float32),
            min_p=np.zeros(num_slots, dtype=np.float32),
            seeds=np.zeros(num_slots, dtype=np.int64),
            positions=np.zeros(num_slots, dtype=np.int64),
        )
        # Repetition, frequency, presence.
        self._penalties = np.zeros((num_slots, 3), dtype=np.float32)
        self._num_logprobs = np.zeros(num_slots, dtype=np.int64)
        self._penalised: set[int] = set()
        self._wanting_logprobs: set[int] = set()
        self._rules: dict[int, SlotRules] = {}
        self._prompt_rows = PromptRows(shape.width)

    def clear(self) -> None:
        """Forget every slot."""
        self._used[:] = False
        self._rules.clear()
        self._penalised.clear()
        self._wanting_logprobs.clear()
        self._prompt_rows.clear()

    def apply(self, batch: StepBatch) -> StepInputs:
        """Take over a step batch's changes, and move its sequences to where they are once the step is done.

        Raises:
            StepBatchError: the batch contradicts the slots.
        """
        self._remove(_ints(batch.removed))
        tokens, blocks = _WriteList(), _WriteList()
        for sequence in batch.added:
            self._add(sequence, tokens, blocks)
        self._append_blocks(_ints(batch.block_slots), _ints(batch.block_ids), blocks)
        slots, counts = _ints(batch.slots), _ints(batch.num_tokens)
        sampled = np.frombuffer(batch.sampled, dtype=np.int8).astype(np.bool_)
        self._check_step(slots, counts, sampled)
        inputs = self._build(slots, counts, sampled, tokens.joined(), blocks.joined())
        self._num_computed[slots] += counts
        self._num_tokens[slots[sampled]] += 1
        self._num_sure[slots[sampled]] = self._num_computed[slots[sampled]]
        return inputs

    def note_ill(self, slots: IntArray) -> None:
        """The logits of these slots were not finite."""
        self._is_ill[slots] = True

    def left(self, token_ids: npt.NDArray[np.int32]) -> tuple[LeftSequence, ...]:
        """What the blocks of all slots hold that gave finite logits, as far as blocks are full and a message can tell.

        Args:
            token_ids: [max_num_seqs, width], tokens of all slots.
        """
        block_size = self._shape.block_size
        num_full = self._num_sure // block_size
        slots = np.flatnonzero(self._used & ~self._is_ill & (num_full > 0))
        slots = slots[np.cumsum(num_full[slots]) * block_size <= _MOST_LEFT_TOKENS]
        return tuple(
            LeftSequence(
                token_ids[slot, : num_full[slot] * block_size].tobytes(),
                self._block_tables[slot, : num_full[slot]].tobytes(),
                self._cache_salts[slot],
            )
            for slot in slots.tolist()
        )

    # ---- changes --------------------------------------------------------------------------------------------------

    def _remove(self, slots: IntArray) -> None:
        if len(slots) == 0:
            return
        self._require(self._are_used(slots), "removed slots that are not in use")
        self._used[slots] = False
        for slot in slots.tolist():
            self._rules.pop(slot, None)
            self._penalised.discard(slot)
            self._wanting_logprobs.discard(slot)
            self._prompt_rows.remove(slot)

    def _add(self, sequence: AddedSequence, new_tokens: "_WriteList", new_blocks: "_WriteList") -> None:
        slot, shape = sequence.slot, self._shape
        tokens = np.frombuffer(sequence.token_ids, dtype="<i4")
        blocks = np.frombuffer(sequence.block_ids, dtype="<i4")
        self._require(0 <= slot < shape.max_num_seqs and not self._used[slot], f"slot {slot} is not free")
        self._require(
            0 <= sequence.num_computed_tokens < len(tokens) <= shape.max_model_len
            and 0 < sequence.num_prompt_tokens <= len(tokens),
            f"slot {slot} with {len(tokens)} tokens",
        )
        self._require(len(blocks) <= shape.max_blocks and self._are_blocks(blocks), f"blocks of slot {slot}")
        new_tokens.add(slot * shape.width + np.arange(len(tokens)), tokens)
        new_blocks.add(slot * shape.max_blocks + np.arange(len(blocks)), blocks)
        self._block_tables[slot, : len(blocks)] = blocks
        self._table_lens[slot] = len(blocks)
        self._used[slot] = True
        self._num_prompt[slot] = sequence.num_prompt_tokens
        self._num_tokens[slot] = len(tokens)
        self._num_computed[slot] = sequence.num_computed_tokens
        self._num_sure[slot] = 0
        self._is_ill[slot] = False
        self._cache_salts[slot] = sequence.cache_salt
        self._sampling.temperature[slot] = sequence.sampling.temperature
        self._sampling.top_k[slot] = sequence.sampling.top_k
        self._sampling.top_p[slot] = sequence.sampling.top_p
        self._sampling.min_p[slot] = sequence.sampling.min_p
        self._sampling.seeds[slot] = np.uint64(sequence.sampling.seed & 0xFFFFFFFFFFFFFFFF).astype(np.int64)
        penalties, num_logprobs = sequence.sampling.penalties, sequence.sampling.num_logprobs
        if penalties is not None:
            self._penalised.add(slot)
            self._penalties[slot] = msgspec.structs.astuple(penalties)
        if num_logprobs is not None:
            self._wanting_logprobs.add(slot)
            self._num_logprobs[slot] = num_logprobs
        rules = SlotRules.of(sequence.sampling.rules, sequence.end_token_ids, sequence.min_tokens)
        if rules is not None:
            self._rules[slot] = rules
        self._require(self._prompt_rows.add(sequence), f"slot {slot} without prompt tokens whose logits are wanted")

    def _append_blocks(self, slots: IntArray, blocks: IntArray, new_blocks: "_WriteList") -> None:
        """Append blocks[j] to the table of slots[j]; a slot may come several times."""
        if len(slots) == 0:
            return
        self._require(self._are_used(slots) and self._are_blocks(blocks) and len(slots) == len(blocks), "new blocks")
        order = np.argsort(slots, kind="stable")
        slots, blocks = slots[order], blocks[order]
        owners, first, counts = np.unique(slots, return_index=True, return_counts=True)
        columns = self._table_lens[slots] + np.arange(len(slots)) - np.repeat(first, counts)
        self._require(bool((columns < self._shape.max_blocks).all()), "more blocks than a sequence can have")
        self._block_tables[slots, columns] = blocks
        new_blocks.add(slots * self._shape.max_blocks + columns, blocks.astype(np.int32))
        self._table_lens[owners] += counts

    # ---- the step -------------------------------------------------------------------------------------------------

    def _build(
        self,
        slots: IntArray,
        counts: IntArray,
        sampled: npt.NDArray[np.bool_],
        new_tokens: Writes,
        new_blocks: Writes,
    ) -> StepInputs:
        shape = self._shape
        num_seqs, num_tokens = len(slots), int(counts.sum())
        query_start = np.zeros(num_seqs + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1:])
        computed = self._num_computed[slots]
        seq_lens = computed + counts
        row_slots, positions = slots, computed
        if num_tokens != num_seqs:
            row_slots = np.repeat(slots, counts)
            positions = np.arange(num_tokens) + np.repeat(computed - query_start[:-1], counts)
        blocks = self._block_tables[row_slots, positions // shape.block_size].astype(np.int64)
        drawing = slots[sampled]
        sampling = self._sampling.take(drawing)
        sampling.positions = self._num_tokens[drawing] - self._num_prompt[drawing]
        return StepInputs(
            new_tokens=new_tokens,
            new_blocks=new_blocks,
            slots=slots,
            query_start=query_start,
            seq_lens=seq_lens.astype(np.int32),
            prompt_lens=self._num_prompt[slots].astype(np.int32),
            positions=positions,
            slot_mapping=blocks * shape.block_size + positions % shape.block_size,
            token_places=row_slots * shape.width + positions,
            sampled_rows=(query_start[1:][sampled] - 1).astype(np.int64),
            drawn_places=drawing * shape.width + self._num_tokens[drawing],
            sampling=sampling,
            rules=self._rules_of(drawing),
            penalties=self._penalties_of(drawing),
            logprobs=self._logprobs_of(drawing),
            num_decodes=int((counts == 1).sum()),
            max_query_len=int(counts.max(initial=0)),
            max_seq_len=int(seq_lens.max(initial=0)),
            prompt_logprobs=self._prompt_rows.take(slots, query_start, computed, seq_lens),
        )

    def _rules_of(self, drawing: IntArray) -> list[RuledRow]:
        """Of the slots that draw those with rules."""
        if not self._rules:
            return []
        return [
            RuledRow(row, slot, int(self._num_prompt[slot]), int(self._num_tokens[slot]), self._rules[slot])
            for row, slot in enumerate(drawing.tolist())
            if slot in self._rules
        ]

    def _penalties_of(self, drawing: IntArray) -> PenaltyBatch:
        """Of the slots that draw those with penalties."""
        if not self._penalised:
            return NO_PENALTY_ROWS
        rows = _rows_in(drawing, self._penalised)
        slots = drawing[rows]
        return PenaltyBatch(rows, slots, self._num_prompt[slots], self._num_tokens[slots], *self._penalties[slots].T)

    def _logprobs_of(self, drawing: IntArray) -> LogprobBatch:
        """Of the slots that draw those whose log probabilities are wanted."""
        if not self._wanting_logprobs:
            return NO_LOGPROB_ROWS
        rows = _rows_in(drawing, self._wanting_logprobs)
        return LogprobBatch(rows, self._num_logprobs[drawing[rows]])

    def _check_step(self, slots: IntArray, counts: IntArray, sampled: npt.NDArray[np.bool_]) -> None:
        self._require(len(slots) == len(counts) == len(sampled), "slots, token counts and flags of different lengths")
        self._require(self._are_used(slots), "a step for slots that are not in use")
        self._require(len(set(slots.tolist())) == len(slots), "a step that names a slot twice")
        ends = self._num_computed[slots] + counts
        known = self._num_tokens[slots]
        self._require(bool(((counts > 0) & (ends <= known)).all()), "a step past the known tokens")
        self._require(bool((ends[sampled] == known[sampled]).all()), "a draw before a sequence's last known token")
        room = self._table_lens[slots] * self._shape.block_size
        self._require(bool((ends <= room).all()), "a step without blocks for it")
        self._require(bool((ends <= self._shape.max_model_len).all()), "a step past the longest sequence")
        ones = counts == 1
        self._require(bool((ones[:-1] >= ones[1:]).all()), "a step whose single tokens do not come first")

    def _are_used(self, slots: IntArray) -> bool:
        return bool(((slots >= 0) & (slots < self._shape.max_num_seqs)).all() and self._used[slots].all())

    def _are_blocks(self, blocks: npt.NDArray[np.integer]) -> bool:
        return bool(((blocks >= 0) & (blocks < self._num_blocks)).all())

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise StepBatchError(f"the scheduler sent {what}")


class _WriteList:
    """Writes of one step, collected."""

    def __init__(self) -> None:
        self._places: list[IntArray] = []
        self._values: list[npt.NDArray[np.int32]] = []

    def add(self, places: IntArray, values: npt.NDArray[np.int32]) -> None:
        """values[i] goes to places[i]."""
        self._places.append(places)
        self._values.append(values)

    def joined(self) -> Writes:
        """All of them."""
        if not self._places:
            return Writes(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
        return Writes(np.concatenate(self._places), np.concatenate(self._values))


def _rows_in(slots: IntArray, wanted: set[int]) -> IntArray:
    """Where among `slots` those are that are wanted."""
    return np.array([row for row, slot in enumerate(slots.tolist()) if slot in wanted], dtype=np.int64)


def _ints(data: bytes) -> IntArray:
    """Little-endian int32 bytes as numbers that can index."""
    return np.frombuffer(data, dtype="<i4").astype(np.int64)
