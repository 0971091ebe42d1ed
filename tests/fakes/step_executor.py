"""A worker made of dictionaries: it executes step batches, and asserts that the scheduler never misleads it.

Its model's next token is a function of all tokens before it, read back from its "KV cache", so any wrong block, wrong
order or wrong count changes what comes out.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from pagewire.ipc.steps import LeftSequence, StepBatch, StepOutput

VOCAB = 50


def next_token(token_ids: list[int]) -> int:
    """The model: the token that follows these."""
    return crc32(np.array(token_ids, dtype=np.int32).tobytes()) % VOCAB


def complete(prompt: list[int], max_tokens: int, stop: frozenset[int] = frozenset()) -> list[int]:
    """What an undisturbed run of one prompt gives."""
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(next_token(token_ids))
        if token_ids[-1] in stop:
            break
    return token_ids[len(prompt) :]


def logprob_record(token_ids: list[int], num_logprobs: int | None) -> bytes:
    """The record of the token that follows these, as made up as the token; empty if none is wanted."""
    if num_logprobs is None:
        return b""
    digest = crc32(np.array(token_ids, dtype=np.int32).tobytes())
    pairs = np.zeros(1 + num_logprobs, dtype=[("rank_or_token", "<i4"), ("logprob", "<f4")])
    pairs["rank_or_token"], pairs["logprob"] = 1 + digest % (VOCAB - 1), -(digest % 1024) / 64
    return pairs.tobytes()


class WorkerDiedError(Exception):
    """The worker was given tokens that kill it."""


@dataclass
class Slot:
    token_ids: list[int]
    num_computed: int
    block_ids: list[int]
    num_logprobs: int | None
    num_prompt: int
    num_prompt_logprobs: int | None
    num_prompt_records: int


@dataclass
class StepExecutor:
    """Executes batches in order, each when `run_next` says so, so that steps can be late."""

    block_size: int
    num_blocks: int
    slots: dict[int, Slot] = field(default_factory=dict)
    queue: deque[StepBatch] = field(default_factory=deque)
    nan_after: int | None = None
    """Sequences whose token count reaches this return NaN."""
    deadly: frozenset[tuple[int, ...]] = frozenset()
    """Computing the last token of one of these, after the others, kills the worker."""
    ill: frozenset[tuple[int, ...]] = frozenset()
    """From the last token of one of these on, after the others, logits are NaN, and so is what blocks hold."""

    def __post_init__(self) -> None:
        self.cache: list[list[int | None]] = [[None] * self.block_size for _ in range(self.num_blocks)]
        self._writes: deque[set[int]] = deque()
        self._future = {}

    def hold(self, left: Iterable[LeftSequence]) -> None:
        """Have in its blocks what an earlier scheduler left there."""
        for sequence in left:
            tokens, size = _ints(sequence.token_ids), self.block_size
            for index, block in enumerate(_ints(sequence.block_ids)):
                self.cache[block] = list(tokens[index * size : (index + 1) * size])

    def send(self, batch: StepBatch) -> None:
        """Queue a batch; assert that its new blocks are not written by steps still in the queue."""
        fresh = {
            b for added in batch.added for b in _ints(added.block_ids)[added.num_computed_tokens // self.block_size :]
        }
        fresh |= set(_ints(batch.block_ids))
        for writes in self._writes:
            assert not fresh & writes, "a block was given away while a step in flight still writes to it"
        self._writes.append(self._blocks_written(batch))
        self.queue.append(batch)

    def run_next(self) -> StepOutput:
        """Execute the oldest queued batch."""
        batch = self.queue.popleft()
        self._writes.popleft()
        self._apply_diff(batch)
        tokens, flags, records, prompt_records = [], [], [], []
        counts = _ints(batch.num_tokens)
        for slot_id, count, sampled in zip(_ints(batch.slots), counts, batch.sampled, strict=True):
            slot = self.slots[slot_id]
            self._compute(slot, count)
            prompt_records += self._prompt_records(slot, count)
            assert bool(sampled) == (slot.num_computed == len(slot.token_ids))
            if sampled:
                read_back = [self._read(slot, position) for position in range(slot.num_computed)]
                assert read_back == slot.token_ids, "the KV cache does not hold this sequence's tokens"
                tokens.append(next_token(read_back))
                is_ill = self._num_well(read_back) < len(read_back)
                flags.append(int(is_ill or (self.nan_after is not None and len(read_back) >= self.nan_after)))
                records.append(logprob_record(slot.token_ids, slot.num_logprobs))
                slot.token_ids.append(tokens[-1])
        token_ids = np.array(tokens, dtype=np.int32).tobytes()
        return StepOutput(batch.step_id, token_ids, bytes(flags), b"".join(records), b"".join(prompt_records))

    def _prompt_records(self, slot: Slot, count: int) -> list[bytes]:
        """The records of the prompt tokens that follow those which were computed last, if they are news."""
        end = min(slot.num_computed, slot.num_prompt - 1)
        if slot.num_prompt_logprobs is None or slot.num_prompt_records >= end:
            return []
        assert slot.num_computed - count <= slot.num_prompt_records, "a row whose logits are wanted was not computed"
        news = range(slot.num_prompt_records + 1, end + 1)
        slot.num_prompt_records = end
        return [logprob_record(slot.token_ids[:index], slot.num_prompt_logprobs) for index in news]

    def _apply_diff(self, batch: StepBatch) -> None:
        for slot in _ints(batch.removed):
            del self.slots[slot]
        for added in batch.added:
            assert added.slot not in self.slots
            token_ids = _ints(added.token_ids)
            assert added.num_computed_tokens <= self._num_well(token_ids), "a block that holds NaN was shared"
            blocks, num_logprobs = _ints(added.block_ids), added.sampling.num_logprobs
            self.slots[added.slot] = Slot(
                token_ids,
                added.num_computed_tokens,
                blocks,
                num_logprobs,
                added.num_prompt_tokens,
                added.sampling.num_prompt_logprobs,
                added.num_known_prompt_logprobs,
            )
        for slot, block in zip(_ints(batch.block_slots), _ints(batch.block_ids), strict=True):
            self.slots[slot].block_ids.append(block)

    def _num_well(self, token_ids: list[int]) -> int:
        """Leading tokens that are not ill."""
        lengths = [len(context) - 1 for context in self.ill if tuple(token_ids[: len(context)]) == context]
        return min(lengths, default=len(token_ids))

    def _compute(self, slot: Slot, count: int) -> None:
        for position in range(slot.num_computed, slot.num_computed + count):
            if tuple(slot.token_ids[: position + 1]) in self.deadly:
                raise WorkerDiedError(slot.token_ids[: position + 1])
            block = slot.block_ids[position // self.block_size]
            self.cache[block][position % self.block_size] = slot.token_ids[position]
        slot.num_computed += count

    def _read(self, slot: Slot, position: int) -> int | None:
        return self.cache[slot.block_ids[position // self.block_size]][position % self.block_size]

    def _blocks_written(self, batch: StepBatch) -> set[int]:
        """Blocks this batch will write, from a mirror that runs ahead of execution: slot -> (num_computed, blocks)."""
        for slot in _ints(batch.removed):
            del self._future[slot]
        for added in batch.added:
            self._future[added.slot] = [added.num_computed_tokens, _ints(added.block_ids)]
        for slot, block in zip(_ints(batch.block_slots), _ints(batch.block_ids), strict=True):
            self._future[slot][1].append(block)
        written = set()
        for slot, count in zip(_ints(batch.slots), _ints(batch.num_tokens), strict=True):
            start, blocks = self._future[slot]
            written |= {blocks[position // self.block_size] for position in range(start, start + count)}
            self._future[slot][0] += count
        return written


def _ints(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype=np.int32).tolist()
