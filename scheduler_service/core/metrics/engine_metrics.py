"""What happens to sequences and steps, counted and timed. The scheduler calls in; nothing is computed per token.

Names and buckets are vLLM's where it has the same metric; report.py says them. A sequence that came with output from
elsewhere, because its scheduler or gateway died, has no first token here and no whole time: its tokens are counted,
its latencies are not.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from scheduler_service.core.metrics.histogram import Histogram, one_two_five
from scheduler_service.core.metrics.times import Outcome, Times
from scheduler_service.core.metrics.token_intervals import TokenIntervals
from scheduler_service.core.sequence import Sequence
from scheduler_service.core.step_plan import StepInFlight

if TYPE_CHECKING:
    from scheduler_service.core.metrics.sequence_spans import SequenceSpans

_TTFT_EDGES = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_TOKEN_EDGES = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_REQUEST_EDGES = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
_STEP_TOKEN_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class EngineMetrics:
    """Counters and histograms of one scheduler.

    Args:
        max_num_seqs: slots.
        max_model_len: the longest that a sequence can be, in tokens.
        spans: told of sequences too, if they are traced.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        spans: "SequenceSpans | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = clock
        self._spans = spans
        lengths = one_two_five(max_model_len)
        self.time_to_first_token = Histogram(_TTFT_EDGES)
        self.inter_token_latency = Histogram(_TOKEN_EDGES)
        self.time_per_output_token = Histogram(_TOKEN_EDGES)
        self.request_latency = Histogram(_REQUEST_EDGES)
        self.queue_time = Histogram(_REQUEST_EDGES)
        self.prefill_time = Histogram(_REQUEST_EDGES)
        self.decode_time = Histogram(_REQUEST_EDGES)
        self.inference_time = Histogram(_REQUEST_EDGES)
        self.prompt_lengths = Histogram(lengths)
        self.output_lengths = Histogram(lengths)
        self.max_tokens = Histogram(lengths)
        self.step_tokens = Histogram(_STEP_TOKEN_EDGES)
        self.step_time = Histogram(_STEP_EDGES)
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self.num_resumed = 0
        self.num_resets = 0
        self.num_requeued = 0
        self.last_step_s: float | None = None
        self.ends: Counter[Outcome] = Counter()
        self._intervals = TokenIntervals(max_num_seqs, self.inter_token_latency)

    # ---- sequences ------------------------------------------------------------------------------------------------

    def note_arrival(self, sequence: Sequence) -> None:
        """It was accepted."""
        sequence.times.arrived_s = self.now()
        if self._spans is not None:
            self._spans.begin(sequence)

    def note_admission(self, sequence: Sequence) -> None:
        """It has got a slot, for the first time or again."""
        times, slot = sequence.times, sequence.slot
        assert slot is not None
        if times.admitted_s is None:
            times.admitted_s = self.now()
        self._intervals.take_slot(slot, times.last_token_s)

    def note_requeue(self, sequence: Sequence, slot: int) -> None:
        """It has lost its slot, and waits again."""
        sequence.times.last_token_s = self._intervals.leave_slot(slot)
        self.num_requeued += 1
        if self._spans is not None:
            self._spans.requeue(sequence)

    def note_end(self, sequence: Sequence, outcome: Outcome) -> None:
        """It has ended, in whatever state; it may still hold its slot."""
        times = sequence.times
        if sequence.slot is not None:
            times.last_token_s = self._intervals.leave_slot(sequence.slot)
        self.ends[outcome] += 1
        if outcome.is_success and _began_here(sequence):
            self._observe_request(sequence, times)
        if self._spans is not None:
            self._spans.end(sequence, outcome, self.now())

    def note_resume(self) -> None:
        """A caller goes on with a sequence in another stream."""
        self.num_resumed += 1

    def note_reset(self) -> None:
        """The workers came back with nothing."""
        self.num_resets += 1

    def _observe_request(self, sequence: Sequence, times: Times) -> None:
        self.prompt_lengths.observe(sequence.num_prompt_tokens)
        self.output_lengths.observe(len(sequence.token_ids) - sequence.num_prompt_tokens)
        self.max_tokens.observe(sequence.max_total_tokens - sequence.num_prompt_tokens)
        self.request_latency.observe(self.now() - times.arrived_s)
        first_s, last_s, admitted_s = times.first_token_s, times.last_token_s, times.admitted_s
        if first_s is None or last_s is None or admitted_s is None:
            return
        self.queue_time.observe(admitted_s - times.arrived_s)
        self.prefill_time.observe(first_s - admitted_s)
        self.decode_time.observe(last_s - first_s)
        self.inference_time.observe(last_s - admitted_s)
        num_later = len(sequence.token_ids) - sequence.num_prompt_tokens - 1
        if num_later > 0:
            self.time_per_output_token.observe((last_s - first_s) / num_later)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def note_result(self, step: StepInFlight) -> None:
        """A step's tokens are here; sequences that are over drew in vain, and were told of with `note_end`."""
        now_s = self.now()
        self.step_time.observe(now_s - step.sent_s)
        self.step_tokens.observe(step.num_tokens)
        self.last_step_s = now_s
        if not step.sampled:
            return
        slots, key = step.slots, step.slot_bytes
        if len(step.sampled) < len(slots):
            slots = slots[step.is_sampled]
            key = slots.tobytes()
        num_over = 0
        for place in self._intervals.note_step(slots, key, now_s):
            if step.sampled[place].is_over:
                num_over += 1
                # This was no token to count the next one from.
                self._intervals.leave_slot(int(slots[place]))
            else:
                self._note_first_token(step.sampled[place], now_s)
        self.num_output_tokens += len(step.sampled) - num_over

    def _note_first_token(self, sequence: Sequence, now_s: float) -> None:
        times = sequence.times
        times.first_token_s = now_s
        self.num_prompt_tokens += sequence.num_prompt_tokens
        if _began_here(sequence):
            self.time_to_first_token.observe(now_s - times.arrived_s)


def _began_here(sequence: Sequence) -> bool:
    return sequence.num_given_tokens == sequence.num_prompt_tokens
