"""Which sequences hold a slot and blocks: how they get them, grow, and give them back."""

from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile

import numpy as np

from pagewire.ipc.steps import LeftSequence
from scheduler_service.core.block_manager import BlockManager
from scheduler_service.core.cache_journal import CacheJournal
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.prefix_cache import BlockHasher
from scheduler_service.core.sequence import Sequence, Status
from scheduler_service.core.slot_table import IntArray, SlotTable
from scheduler_service.core.step_plan import StepPlan

# As the number of blocks that a slot has offered: it offers no more.
_NEVER = np.iinfo(np.int32).max


class RunningSet:
    """Owns slots, block tables and the prefix cache, and records every change in `plan` for the workers.

    A sequence that leaves (at its end, on cancel, on preemption) is no longer scheduled at once, but what it holds is
    released only when no step in flight computes it: such a step still writes to its blocks.

    Args:
        requeue: takes a preempted sequence once it is WAITING again, and the slot that it had.

    Attributes:
        num_preemptions: sequences that had to make room for others.
        num_prompt_queries: tokens that were looked up in the prefix cache when their sequences first ran.
        num_prompt_hits: those of them that were found.
    """

    def __init__(self, config: SchedulerConfig, num_blocks: int, requeue: Callable[[Sequence, int], None]) -> None:
        self.table = SlotTable(config.max_num_seqs)
        self.journal = CacheJournal(config.block_size)
        self.blocks = BlockManager(num_blocks, self.journal.note_removed)
        self.plan = StepPlan()
        self._config = config
        self._requeue = requeue
        self._hasher = BlockHasher(config.block_size)
        self._promised: Counter[bytes] = Counter()
        self._running: list[Sequence] = []
        self._leaving: list[Sequence] = []
        self._slots: IntArray | None = None
        self.num_preemptions = 0
        self.num_prompt_queries = 0
        self.num_prompt_hits = 0

    @property
    def num_held_slots(self) -> int:
        """Sequences that hold a slot, leaving ones included."""
        return len(self._running) + len(self._leaving)

    @property
    def slots(self) -> IntArray:
        """Slots of the running sequences, first to be served first."""
        if self._slots is None:
            self._slots = np.array([sequence.slot for sequence in self._running], dtype=np.int32)
        return self._slots

    def adopt(self, left: Iterable[LeftSequence]) -> int:
        """Put blocks that workers hold from before, of a scheduler that died, into the prefix cache; how many they are.

        Its sequences will come again with their tokens, and need not be computed again.
        """
        if not self._config.prefix_caching:
            return 0
        contents: list[tuple[int, int, bytes]] = []
        for sequence in left:
            token_ids, block_ids, hashes = array("i"), array("i"), list[bytes]()
            token_ids.frombytes(sequence.token_ids)
            block_ids.frombytes(sequence.block_ids)
            self._hasher.extend(hashes, token_ids, sequence.cache_salt, len(block_ids))
            contents += zip(range(len(hashes)), block_ids, hashes, strict=True)
        # The deepest are the first to be evicted.
        contents.sort(reverse=True)
        return self.blocks.adopt((block, content_hash) for _, block, content_hash in contents)

    def admit(self, sequence: Sequence) -> int | None:
        """Give a waiting sequence a slot and blocks for all its tokens; None if there is no room for it.

        One block per running sequence stays in reserve, so that a newcomer does not push out those it joins.
        """
        if self.table.num_free == 0:
            return None
        shared = self._match_prefix(sequence)
        num_new = -(-len(sequence.token_ids) // self._config.block_size) - len(shared)
        available = self.blocks.num_available - self.blocks.num_idle_among(shared)
        if num_new + len(self._running) > available:
            return None
        self.blocks.share(shared)
        new_blocks = self.blocks.allocate(num_new)
        assert new_blocks is not None
        if self.journal.is_kept:
            self.journal.note_stored(sequence, len(shared))
        sequence.block_ids = shared + new_blocks
        sequence.num_shared_blocks = len(shared)
        sequence.num_admitted_tokens = len(sequence.token_ids)
        num_computed = len(shared) * self._config.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(num_computed, sequence.num_prompt_tokens)
            self.num_prompt_queries += len(sequence.token_ids)
            self.num_prompt_hits += num_computed
        sequence.slot = slot = self.table.take(sequence, num_computed, len(shared))
        sequence.promised_hashes = sequence.block_hashes[len(shared) :]
        self._promised.update(sequence.promised_hashes)
        sequence.move_to(Status.RUNNING)
        insort(self._running, sequence, key=_order)
        self._slots = None
        self.plan.add_sequence(sequence, slot, num_computed)
        return slot

    def grow(self, sequence: Sequence) -> None:
        """Give a running sequence one more block, preempting the youngest if need be.

        It gets none, and sits out this step, if it was preempted itself or if the blocks it needs are on their way,
        held by a leaving sequence until its last step is back.
        """
        while sequence.status is Status.RUNNING:
            blocks = self.blocks.allocate(1)
            if blocks is not None:
                assert sequence.slot is not None
                sequence.block_ids += blocks
                self.table.num_blocks[sequence.slot] += 1
                self.plan.add_block(sequence.slot, blocks[0])
                return
            if self._leaving:
                return
            self.num_preemptions += 1
            self.leave(self._running[-1], Status.PREEMPTING)

    def leave(self, sequence: Sequence, status: Status) -> None:
        """Schedule a running sequence no more (PREEMPTING or ENDING), and release what it holds as soon as is safe."""
        sequence.move_to(status)
        position = bisect_left(self._running, sequence.order, key=_order)
        assert self._running[position] is sequence
        del self._running[position]
        self._slots = None
        self._settle_promises(sequence)
        self._leaving.append(sequence)
        self.free_leaving()

    def free_leaving(self) -> None:
        """Free slots and blocks of leaving sequences that no step in flight computes any more.

        This is the one place where a sequence's blocks are freed: at its end, on cancel and on preemption.
        """
        leaving, self._leaving = self._leaving, []
        for sequence in leaving:
            slot = sequence.slot
            assert slot is not None
            if self.table.in_flight[slot] > 0:
                self._leaving.append(sequence)
                continue
            self.blocks.free(sequence.block_ids)
            self.table.release(slot)
            self.plan.drop_slot(slot)
            sequence.block_ids = []
            sequence.slot = None
            if sequence.status is Status.ENDING:
                sequence.move_to(Status.ENDED)
            else:
                sequence.move_to(Status.WAITING)
                self._requeue(sequence, slot)

    def cache_full_blocks(self, slots: IntArray, num_computed: IntArray) -> None:
        """Offer full blocks to the prefix cache: their content is certain now, and gave finite logits.

        A chunk of a prompt that draws nothing offers nothing yet. What its blocks hold might be NaN, and whoever shared
        them meanwhile would have to be found and fail too.

        slots, num_computed: [n], of a finished step's slots that drew a token, how many tokens of each are computed.
        """
        if not self._config.prefix_caching:
            return
        num_full = num_computed // self._config.block_size
        grown = np.flatnonzero(num_full > self.table.num_cached[slots])
        for slot, count in zip(slots[grown].tolist(), num_full[grown].tolist(), strict=True):
            sequence = self.table.sequences[slot]
            if sequence is None or sequence.status is Status.ENDING:
                continue
            self._hasher.extend(sequence.block_hashes, sequence.token_ids, sequence.cache_salt, count)
            for index in range(self.table.num_cached[slot], count):
                if self.blocks.cache.insert(sequence.block_ids[index], sequence.block_hashes[index]):
                    self.journal.note_block(sequence, index)
            self.table.num_cached[slot] = count
            self._settle_promises(sequence)

    def withdraw_shared(self, sequence: Sequence) -> None:
        """A sequence got no finite logits: offer nobody the cached blocks it read, unless it had finite ones from them.

        They gave finite logits to who computed them, so they are good unless memory went bad; if it did, this heals
        the prefix, and else it costs one more computation of it. Sequences that hold them go on, by their own logits.
        """
        if len(sequence.token_ids) == sequence.num_admitted_tokens:
            for block in sequence.block_ids[: sequence.num_shared_blocks]:
                self.blocks.cache.withdraw(block)

    def watch_cache(self, gateway: bytes) -> None:
        """Tell a gateway what is cached, of which what running sequences hold is known at once."""
        self.journal.watch(gateway)
        for sequence in self.holding():
            self.journal.note_stored(sequence, len(self.blocks.cache.match(sequence.block_hashes)))

    def flush_cache(self) -> int:
        """Share nothing any more that is cached now; how many blocks are they?

        Sequences that hold them go on, and offer nothing, for it could only be found after what is forgotten.
        """
        num_blocks = self.blocks.flush()
        self.journal.note_cleared()
        for sequence in self.holding():
            self._settle_promises(sequence)
            self.table.num_cached[sequence.slot] = _NEVER
        return num_blocks

    def reset(self, num_blocks: int) -> None:
        """The workers lost everything: every running sequence waits again, and the pool is new."""
        self.table.in_flight[:] = 0
        for sequence in list(self._running):
            self.leave(sequence, Status.PREEMPTING)
        self.free_leaving()
        self.blocks = BlockManager(num_blocks, self.journal.note_removed)
        self.journal.note_cleared()
        self.plan = StepPlan()

    def take_plan(self) -> StepPlan:
        """The changes since the last call."""
        plan, self.plan = self.plan, StepPlan()
        return plan

    def holding(self) -> list[Sequence]:
        """All sequences with a slot: running, then leaving."""
        return self._running + self._leaving

    def check_integrity(self) -> None:
        """Assert that every block and slot is where it belongs."""
        holding = self.holding()
        self.blocks.check_integrity(sequence.block_ids for sequence in holding)
        taken = [slot for slot, sequence in enumerate(self.table.sequences) if sequence is not None]
        assert taken == sorted(sequence.slot for sequence in holding if sequence.slot is not None)
        assert len(taken) + self.table.num_free == self._config.max_num_seqs
        assert all(sequence.status is Status.RUNNING for sequence in self._running)
        assert all(sequence.status in (Status.PREEMPTING, Status.ENDING) for sequence in self._leaving)
        assert self._running == sorted(self._running, key=_order)
        assert all(self.table.num_blocks[sequence.slot] == len(sequence.block_ids) for sequence in holding)
        assert all(self.table.in_flight[sequence.slot] > 0 for sequence in self._leaving)
        assert self._promised == Counter(h for sequence in holding for h in sequence.promised_hashes)
        assert all(self._promised.values()), "a promise that nobody made is kept"

    def _match_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the longest known prefix that leaves what has to be computed: at least one token."""
        if not self._config.prefix_caching:
            return []
        num_blocks = (len(sequence.token_ids) - 1) // self._config.block_size
        self._hasher.extend(sequence.block_hashes, sequence.token_ids, sequence.cache_salt, num_blocks)
        num_shareable = sequence.num_shareable_tokens // self._config.block_size
        return self.blocks.cache.match(sequence.block_hashes[:num_shareable])

    def is_mostly_promised(self, sequence: Sequence) -> bool:
        """Whether running sequences compute at least half of what a waiting one has to, and will offer it for sharing.

        Then it pays to wait: of requests that come together with one prompt, or a long common beginning, the first
        computes it for all.
        """
        if not self._promised or sequence.num_shareable_tokens < len(sequence.token_ids) - 1:
            return False
        num_shared = len(self._match_prefix(sequence))
        missing = sequence.block_hashes[num_shared:]
        num_promised = sum(1 for _ in takewhile(self._promised.__contains__, missing))
        num_left = len(sequence.token_ids) - num_shared * self._config.block_size
        return num_promised > 0 and 2 * num_promised * self._config.block_size >= num_left

    def _settle_promises(self, sequence: Sequence) -> None:
        """The sequence has drawn, or leaves before it did: nobody need wait for its blocks any longer."""
        for content_hash in sequence.promised_hashes:
            self._promised[content_hash] -= 1
            if not self._promised[content_hash]:
                del self._promised[content_hash]
        sequence.promised_hashes = []


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
