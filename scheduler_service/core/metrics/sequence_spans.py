"""What does a trace show of a sequence's time in the scheduler? One span, and in it one for each phase."""

from pagewire.ipc.spans import Span, Tracer, Value, unix_s
from scheduler_service.core.metrics.times import Outcome
from scheduler_service.core.sequence import Sequence


class SequenceSpans:
    """Spans of the sequences that came with a trace context.

    scheduler  |--------------------------------------------|   arrival to end
      queue    |---------|                                      until it first has a slot
      prefill            |-----------|                          until its first token
      decode                         |--------------------|     until its last token
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._spans: dict[Sequence, Span] = {}

    def begin(self, sequence: Sequence) -> None:
        """It has arrived; what is done for it from now on belongs to its span."""
        if not sequence.trace_context:
            return
        span = self._tracer.start("scheduler", sequence.trace_context, at_s=unix_s(sequence.times.arrived_s))
        if span is not None:
            self._spans[sequence] = span
            sequence.trace_context = span.context

    def requeue(self, sequence: Sequence) -> None:
        """It lost its slot: to others, or with the workers."""
        if sequence in self._spans:
            self._spans[sequence].event("requeued", {"pagewire.num_tokens": len(sequence.token_ids)})

    def end(self, sequence: Sequence, outcome: Outcome, now_s: float) -> None:
        """It has ended, and its times are known."""
        span = self._spans.pop(sequence, None)
        if span is None:
            return
        span.set(_attributes(sequence, outcome, now_s))
        self._add_phases(sequence)
        if not outcome.is_success:
            span.fail(outcome.value, sequence.ended.detail if sequence.ended is not None else "")
        span.end(unix_s(now_s))

    def close(self) -> None:
        """Send what is left."""
        self._tracer.close()

    def _add_phases(self, sequence: Sequence) -> None:
        times = sequence.times
        moments = (times.arrived_s, times.admitted_s, times.first_token_s, times.last_token_s)
        for name, start_s, end_s in zip(("queue", "prefill", "decode"), moments, moments[1:], strict=False):
            if start_s is None or end_s is None:
                return
            phase = self._tracer.start(name, sequence.trace_context, at_s=unix_s(start_s))
            if phase is not None:
                phase.end(unix_s(end_s))


def _attributes(sequence: Sequence, outcome: Outcome, now_s: float) -> dict[str, Value]:
    times = sequence.times
    attributes: dict[str, Value] = {
        "gen_ai.response.id": sequence.request_id,
        "gen_ai.usage.input_tokens": sequence.num_prompt_tokens,
        "gen_ai.usage.output_tokens": len(sequence.token_ids) - sequence.num_prompt_tokens,
        "gen_ai.latency.e2e": now_s - times.arrived_s,
        "pagewire.outcome": outcome.value,
        "pagewire.num_cached_tokens": sequence.num_cached_tokens or 0,
    }
    if times.admitted_s is not None:
        attributes["gen_ai.latency.time_in_queue"] = times.admitted_s - times.arrived_s
    if times.admitted_s is not None and times.first_token_s is not None:
        attributes["gen_ai.latency.time_to_first_token"] = times.first_token_s - times.arrived_s
        attributes["gen_ai.latency.time_in_model_prefill"] = times.first_token_s - times.admitted_s
    if times.first_token_s is not None and times.last_token_s is not None:
        attributes["gen_ai.latency.time_in_model_decode"] = times.last_token_s - times.first_token_s
    return attributes
