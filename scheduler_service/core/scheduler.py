"""Which sequence computes how many tokens in the next step, and what follows from a step's result. No I/O.

There is no prefill or decode phase: a sequence has tokens that are computed and tokens that are known, and every step
moves the first towards the second under a token budget.
"""

import logging
from collections.abc import Iterable

import numpy as np

from pagewire.ipc.requests import EndReason, Load, StepTokens, Submit
from pagewire.ipc.steps import LeftSequence, StepBatch, StepOutput
from scheduler_service.core.admission import Refusal
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.metrics.times import Outcome
from scheduler_service.core.orphans import Orphans
from scheduler_service.core.outputs import OutputCollector, split_logprobs, split_prompt_logprobs
from scheduler_service.core.running_set import RunningSet
from scheduler_service.core.sequence import NOBODY, Sequence, Status
from scheduler_service.core.slot_table import IntArray
from scheduler_service.core.step_plan import StepInFlight
from scheduler_service.core.steps_in_flight import StepsInFlight
from scheduler_service.core.usage import Usage
from scheduler_service.core.waiting_room import WaitingRoom

logger = logging.getLogger(__name__)

_CONDEMNED = "the worker died three times while it computed this request, the last time alone: it was given up"


class Scheduler:
    """Owns every sequence from `add` to its end. `journal` notes what the prefix cache holds for those who watch it.

    The caller alternates `schedule` (a step to send, or None) and `update` (a step's result), with at most
    `config.max_steps_in_flight` steps between them, and hands out what `take_outputs` returns.

    Args:
        num_blocks: KV blocks of the pool.
        eos_token_ids: tokens that end a sequence unless it ignores them.
        metrics: told of what happens.
    """

    def __init__(
        self, config: SchedulerConfig, num_blocks: int, eos_token_ids: frozenset[int], metrics: EngineMetrics
    ) -> None:
        self.config = config
        self.metrics = metrics
        self._eos_token_ids = eos_token_ids
        self._sequences: dict[tuple[bytes, int], Sequence] = {}
        self._by_request_id: dict[str, Sequence] = {}
        self._orphans = Orphans(config)
        self._num_orphaned = 0
        self._waiting = WaitingRoom(config)
        running = self._running = RunningSet(config, num_blocks, self._requeue)
        self.journal, self.watch_cache, self.flush_cache = running.journal, running.watch_cache, running.flush_cache
        self._in_flight = StepsInFlight()
        self._outputs = OutputCollector()
        self._num_arrivals = 0
        self._num_steps = 0

    def adopt(self, left: Iterable[LeftSequence]) -> None:
        """Before anything runs: share what an earlier scheduler left in the workers' blocks."""
        logger.info("blocks adopted num_blocks=%d", self._running.adopt(left))

    # ---- requests -------------------------------------------------------------------------------------------------

    def add(self, gateway: bytes, submit: Submit, max_total_tokens: int) -> None:
        """Queue a request that admission has checked; `max_total_tokens` is prompt plus output at most."""
        sequence = Sequence.of(submit, gateway, self._num_arrivals, max_total_tokens, self._eos_token_ids)
        self._num_arrivals += 1
        self.metrics.note_arrival(sequence)
        self._sequences[gateway, submit.stream_id] = sequence
        self._by_request_id[submit.request_id] = sequence
        self._outputs.add_accepted(gateway, submit.stream_id)
        self._waiting.backlog.enter(sequence.num_given_tokens, sequence.tenant)
        if submit.num_deaths:
            self._waiting.note_told(submit.request_id, submit.num_deaths, sequence.num_given_tokens)
        self._waiting.push(sequence)
        if not self._waiting.quarantine.admit(sequence.request_id):
            self._fail(sequence, _CONDEMNED)

    def refuse_for_room(self, submit: Submit) -> Refusal | None:
        """Why there is no room for another request now; requests that were accepted before need no room."""
        refuse = self._waiting.backlog.refuse_resumed if submit.resumes else self._waiting.backlog.refuse
        return None if submit.was_accepted else refuse(len(submit.token_ids) // 4, submit.tenant)

    def has(self, gateway: bytes, stream_id: int) -> bool:
        """Whether this stream's sequence has not ended yet."""
        return (gateway, stream_id) in self._sequences

    def abort(self, gateway: bytes, stream_id: int, outcome: Outcome = Outcome.CANCELLED) -> None:
        """End a sequence at any state without a further message; unknown streams are ignored."""
        sequence = self._sequences.get((gateway, stream_id))
        if sequence is not None:
            self._end(sequence, outcome)

    def abort_gateway(self, gateway: bytes) -> None:
        """End every sequence of a gateway that took its leave."""
        for owner, stream_id in [key for key in self._sequences if key[0] == gateway]:
            self.abort(owner, stream_id)

    def expire(self, now_s: float) -> None:
        """End every sequence whose deadline (Unix time) has passed, and orphans that nobody has resumed in time."""
        for sequence in list(self._sequences.values()):
            if sequence.deadline_s is not None and sequence.deadline_s <= now_s:
                self._outputs.add_end(sequence, EndReason.DEADLINE)
                self._end(sequence, Outcome.DEADLINE)
        for sequence in self._orphans.let_go_expired(now_s):
            if not sequence.is_over:
                self._end(sequence, Outcome.ABANDONED)

    @property
    def has_sequences(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._sequences)

    @property
    def num_unfinished(self) -> int:
        """Sequences that have not ended, or whose callers may still come for their tokens."""
        return len(self._sequences) + self._orphans.num_ended

    def take_outputs(self) -> list[tuple[bytes, StepTokens]]:
        """News since the last call, one message per gateway."""
        return self._outputs.flush()

    @property
    def load(self) -> Load:
        """Sequences with and without a slot, blocks that could be given out, and tokens that are not computed yet."""
        running, num_running = self._running, self._running.num_held_slots
        num_tokens = self._waiting.backlog.size[1] + running.table.num_tokens_to_compute
        return Load(num_running, max(len(self._sequences) - num_running, 0), running.blocks.num_available, num_tokens)

    @property
    def usage(self) -> Usage:
        """How much is in use."""
        return Usage.of(self._running, self._waiting, self._in_flight, self._orphans)

    # ---- sequences that outlive their gateway ----------------------------------------------------------------------

    def orphan_gateway(self, gateway: bytes, now_s: float) -> None:
        """A gateway is gone: its sequences run on for a while, so that their callers can resume them elsewhere."""
        for owner, stream_id in [key for key in self._sequences if key[0] == gateway]:
            sequence = self._sequences[owner, stream_id]
            if self._orphans.take_in(sequence, now_s):
                self._num_orphaned += 1
                self._rehome(sequence, NOBODY, self._num_orphaned)
            else:
                self._end(sequence, Outcome.ABANDONED)

    def find(self, submit: Submit) -> Sequence | None:
        """The sequence that the caller of this request may go on with: one that runs, or an orphan that is complete."""
        sequence = self._orphans.find(submit.request_id) or self._by_request_id.get(submit.request_id)
        num_received = len(submit.token_ids) // 4, submit.num_known_prompt_logprobs
        return sequence if sequence is not None and sequence.knows_from(*num_received) else None

    def knows(self, request_id: str) -> bool:
        """Whether this request has a sequence, be it an orphan that is complete."""
        return request_id in self._by_request_id or self._orphans.find(request_id) is not None

    def attach(self, sequence: Sequence, gateway: bytes, submit: Submit) -> None:
        """Go on with a sequence in another stream, which is told what its caller lacks; the old one is replaced."""
        if sequence.gateway != NOBODY:
            self._outputs.add_replacement(sequence)
        self._orphans.let_go(sequence)
        self._rehome(sequence, gateway, submit.stream_id)
        sequence.deadline_s = submit.deadline_s
        self._outputs.add_history(sequence, len(submit.token_ids) // 4, submit.num_known_prompt_logprobs)
        self.metrics.note_resume()

    def _rehome(self, sequence: Sequence, gateway: bytes, stream_id: int) -> None:
        if not sequence.is_over:
            del self._sequences[sequence.gateway, sequence.stream_id]
            self._sequences[gateway, stream_id] = sequence
        sequence.gateway, sequence.stream_id = gateway, stream_id

    # ---- the next step --------------------------------------------------------------------------------------------

    @property
    def can_schedule(self) -> bool:
        """Whether the workers may be given another step."""
        return len(self._in_flight.steps) < self.config.max_steps_in_flight

    def schedule(self) -> StepBatch | None:
        """The next step, or None if nothing can be computed now.

        Sequences that need one token come first, so that a long prompt never stalls running streams; then chunks of
        prompts by priority, then arrival; then new sequences while slots, blocks and budget last.
        """
        assert self.can_schedule
        decodes = self._schedule_decodes()
        chunks = self._schedule_chunks(self.config.max_num_batched_tokens - len(decodes))
        ones = np.ones(len(decodes), dtype=np.int32)
        if not chunks:
            return self._send_off(decodes, ones, len(decodes)) if len(decodes) else None
        slots = np.array([slot for slot, _ in chunks], dtype=np.int32)
        num_tokens = np.array([count for _, count in chunks], dtype=np.int32)
        total = len(decodes) + sum(count for _, count in chunks)
        return self._send_off(np.concatenate((decodes, slots)), np.concatenate((ones, num_tokens)), total)

    def _schedule_decodes(self) -> IntArray:
        """Slots that compute their one known or promised token, each with a block to write it to."""
        table, slots, block_size = self._running.table, self._running.slots, self.config.block_size
        decodes, lacking = table.split_decodes(slots, block_size)
        if not len(lacking):
            return decodes
        for sequence in [table.sequences[slot] for slot in lacking.tolist()]:
            assert sequence is not None
            self._running.grow(sequence)
        return table.split_decodes(self._running.slots, block_size)[0]

    def _schedule_chunks(self, budget: int) -> list[tuple[int, int]]:
        """Slots that compute several tokens and how many each; those with room for one token only come first."""
        table = self._running.table
        slots = self._running.slots
        behind = slots[table.num_tokens[slots] - table.num_computed[slots] > 1]
        chunks: list[tuple[int, int]] = []
        for slot in behind.tolist():
            budget = self._add_chunk(chunks, slot, budget)
        if table.num_free:
            self._waiting.charge(self._running.holding)
        while budget > 0 and (waiting := self._waiting.next(self.config.max_num_seqs, table.num_free)) is not None:
            if self._running.is_mostly_promised(waiting):
                self._waiting.set_aside(waiting)
                continue
            is_first_run = waiting.num_cached_tokens is None
            new_slot = self._running.admit(waiting)
            if new_slot is None:
                break
            self._waiting.take(waiting)
            self.metrics.note_admission(waiting)
            if is_first_run:
                self._waiting.backlog.leave(waiting.num_given_tokens, waiting.tenant, to_run=True)
                self._outputs.add_start(waiting)
            budget = self._add_chunk(chunks, new_slot, budget)
        self._waiting.bring_back()
        chunks.sort(key=lambda chunk: chunk[1] > 1)
        return chunks

    def _add_chunk(self, chunks: list[tuple[int, int]], slot: int, budget: int) -> int:
        """Let the slot compute as many of its known tokens as the budget allows; returns what is left of it."""
        table = self._running.table
        count = min(budget, int(table.num_tokens[slot] - table.num_computed[slot]))
        if count > 0:
            chunks.append((slot, count))
        return budget - count

    def _send_off(self, slots: IntArray, num_tokens: IntArray, total: int) -> StepBatch:
        """Account for a step as if it had been computed, and remember it until its result comes."""
        table = self._running.table
        num_computed = table.num_computed[slots] + num_tokens
        table.num_computed[slots] = num_computed
        sampled = num_computed == table.num_tokens[slots]
        sampled_slots = slots[sampled]
        table.num_tokens[sampled_slots] += 1
        table.in_flight[slots] += 1
        drawing = [sequence for slot in sampled_slots.tolist() if (sequence := table.sequences[slot]) is not None]
        batch = self._running.take_plan().to_batch(self._num_steps, slots, num_tokens, sampled)
        self._in_flight.steps.append(
            StepInFlight(batch.step_id, slots, num_computed, sampled, drawing, batch.slots, total, self.metrics.now())
        )
        self._num_steps += 1
        return batch

    # ---- a step's result ------------------------------------------------------------------------------------------

    def update(self, output: StepOutput) -> None:
        """Take the result of the oldest step in flight.

        Raises:
            ValueError: the output is not that of the oldest step in flight; nothing was changed.
        """
        token_ids = np.frombuffer(output.token_ids, dtype="<i4").tolist()
        step = self._in_flight.oldest(output, len(token_ids))
        records = list(split_logprobs(step.sampled, output.logprobs)) if output.logprobs else []
        prompt_records = (
            list(split_prompt_logprobs(step.sequences(self._running.table), output.prompt_logprobs))
            if output.prompt_logprobs
            else []
        )
        self._in_flight.steps.popleft()
        self._running.table.in_flight[step.slots] -= 1
        if any(output.nan_flags):
            self._fail_nan(step, output.nan_flags)
        self.metrics.note_result(step)
        drew = slice(None) if len(step.sampled) == len(step.slots) else step.is_sampled
        self._running.cache_full_blocks(step.slots[drew], step.num_computed[drew])
        if self._waiting.quarantine:
            self._clear_suspects(step)
        self._outputs.add_computed_logprobs(prompt_records)
        self._outputs.add_drawn_logprobs(records)
        self._append_tokens(step.sampled, token_ids)
        self._running.free_leaving()

    def _fail_nan(self, step: StepInFlight, nan_flags: bytes) -> None:
        """End the sequences whose logits were not finite, before any of the step's blocks can be cached.

        Blocks that the sequence computed since its last finite logits were never offered for sharing.
        """
        for sequence, flag in zip(step.sampled, nan_flags, strict=True):
            if flag and not sequence.is_over:
                detail = "the model returned NaN or infinite logits for this sequence"
                self._outputs.add_end(sequence, EndReason.FAILED, detail=detail)
                self._running.withdraw_shared(sequence)
                self._end(sequence, Outcome.FAILED)

    def _clear_suspects(self, step: StepInFlight) -> None:
        """Hold nothing more against those who got past the place; a cleared suspect lets the next one run alone."""
        quarantine = self._waiting.quarantine
        for sequence, num_computed in step.sequences(self._running.table):
            if not quarantine.note_progress(sequence.request_id, num_computed):
                continue
            logger.info("suspect cleared request_id=%s", sequence.request_id)
            self._waiting.sort()
            if quarantine.has_suspects and sequence.status is Status.RUNNING:
                self._running.leave(sequence, Status.PREEMPTING)

    def _append_tokens(self, sequences: list[Sequence], token_ids: list[int]) -> None:
        """Append each drawn token to its sequence, unless that has ended meanwhile, and end those that are done."""
        gateway, told_streams, told_tokens = None, list[int](), list[int]()
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            if sequence.is_over:
                continue
            if sequence.gateway != gateway:
                gateway = sequence.gateway
                told_streams, told_tokens = self._outputs.tokens_of(gateway)
            told_streams.append(sequence.stream_id)
            told_tokens.append(token_id)
            tokens = sequence.token_ids
            tokens.append(token_id)
            if token_id in sequence.stop_token_ids and len(tokens) > sequence.min_total_tokens:
                self._outputs.add_end(sequence, EndReason.STOP, stop_token_id=token_id)
                self._end(sequence, Outcome.STOP)
            elif len(tokens) >= sequence.max_total_tokens:
                self._outputs.add_end(sequence, EndReason.LENGTH)
                self._end(sequence, Outcome.LENGTH)

    def _requeue(self, sequence: Sequence, slot: int) -> None:
        self.metrics.note_requeue(sequence, slot)
        self._waiting.push(sequence)

    def _end(self, sequence: Sequence, outcome: Outcome) -> None:
        """End a sequence at any state; RunningSet frees what it holds, now or when its last step in flight is back."""
        self.metrics.note_end(sequence, outcome)
        del self._sequences[sequence.gateway, sequence.stream_id]
        if self._by_request_id.get(sequence.request_id) is sequence:
            del self._by_request_id[sequence.request_id]
        self._waiting.quarantine.leave(sequence.request_id)
        self._waiting.note_end(sequence)
        if sequence.num_cached_tokens is None:
            self._waiting.backlog.leave(sequence.num_given_tokens, sequence.tenant, to_run=False)
        if sequence.status is Status.RUNNING:
            self._running.leave(sequence, Status.ENDING)
        elif sequence.status is Status.PREEMPTING:
            sequence.move_to(Status.ENDING)
        else:
            sequence.move_to(Status.ENDED)
            self._waiting.note_over(sequence)

    # ---- loss of the workers, and self-check ----------------------------------------------------------------------

    def reset(self, num_blocks: int) -> None:
        """The workers died and lost everything: forget blocks and steps, queue every sequence again with its tokens.

        A sequence fails that is found to have killed them, or that the new pool can never hold.
        """
        self.metrics.note_reset()
        condemned = self._waiting.quarantine.note_death(self._in_flight.reaches(self._running.table))
        self._in_flight.clear()
        self._running.reset(num_blocks)
        self._waiting.sort()
        for request_id in condemned:
            logger.error("request condemned request_id=%s", request_id)
        capacity = num_blocks * self.config.block_size
        for sequence in list(self._sequences.values()):
            if sequence.request_id in condemned:
                self._fail(sequence, _CONDEMNED)
            elif (needed := sequence.max_total_tokens - 1) > capacity:
                self._fail(sequence, f"needs {needed} tokens of KV cache; after a restart only {capacity} fit")

    def _fail(self, sequence: Sequence, detail: str) -> None:
        self._outputs.add_end(sequence, EndReason.FAILED, detail=detail)
        self._end(sequence, Outcome.FAILED)

    def note_unsent(self, step_id: int) -> None:
        """This step did not reach the workers, which were gone before: their death is not of its making."""
        self._in_flight.note_unsent(step_id)

    def check_integrity(self) -> None:
        """Assert that every block, slot and sequence is where it belongs. For tests and idle moments."""
        self._running.check_integrity()
        live = {id(sequence) for sequence in self._sequences.values()}
        queued = {id(sequence) for sequence in self._waiting.live()}
        new = [sequence.num_given_tokens for sequence in self._waiting.live() if sequence.num_cached_tokens is None]
        assert self._waiting.backlog.size == (len(new), sum(new)), "the backlog is not what waits for its first turn"
        held = {id(sequence) for sequence in self._running.holding() if not sequence.is_over}
        assert not queued & held, "a sequence is queued and holds a slot"
        assert live == queued | held, "a sequence is neither queued nor holding a slot"
