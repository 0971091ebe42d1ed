"""What does a trace show of a sequence's time in this worker? A span from the moment it takes a slot to its last step.

Steps are of many sequences, and are counted once for all: a span says how many steps ended meanwhile, and how long
this worker was at them.
"""

from dataclasses import dataclass

import numpy as np

from pagewire.ipc.spans import Span, Tracer, unix_s
from pagewire.ipc.steps import StepBatch


@dataclass(slots=True)
class _Traced:
    span: Span
    num_steps: int
    busy_s: float


class SlotSpans:
    """Spans of the sequences in slots that came with a trace context.

    Args:
        rank: of this worker.
    """

    def __init__(self, tracer: Tracer, rank: int) -> None:
        self._tracer = tracer
        self._rank = rank
        self._traced: dict[int, _Traced] = {}
        self._num_steps = 0
        self._busy_s = 0.0
        self._last_answer_s = 0.0

    def note_launch(self, batch: StepBatch, now_s: float) -> None:
        """A step begins: others hold slots now. `now_s` is monotonic."""
        if self._traced:
            for slot in np.frombuffer(batch.removed, dtype="<i4").tolist():
                self._end(slot)
        for added in batch.added:
            span = (
                self._tracer.start("worker", added.trace_context, at_s=unix_s(now_s)) if added.trace_context else None
            )
            if span is not None:
                span.set({"gen_ai.response.id": added.request_id, "pagewire.rank": self._rank})
                self._traced[added.slot] = _Traced(span, self._num_steps, self._busy_s)

    def note_answer(self, launched_s: float, now_s: float) -> None:
        """A step is done. Times are monotonic."""
        self._num_steps += 1
        self._busy_s += now_s - max(launched_s, self._last_answer_s)
        self._last_answer_s = now_s

    def note_idle(self) -> None:
        """There have been no steps for a while: nothing runs, though nobody has said yet who is over."""
        for slot in list(self._traced):
            self._end(slot)

    def close(self) -> None:
        """Send what is left."""
        self.note_idle()
        self._tracer.close()

    def _end(self, slot: int) -> None:
        traced = self._traced.pop(slot, None)
        if traced is not None:
            num_steps, busy_s = self._num_steps - traced.num_steps, self._busy_s - traced.busy_s
            traced.span.set({"pagewire.num_steps": num_steps, "pagewire.step_seconds": busy_s})
            traced.span.end(unix_s(self._last_answer_s) if num_steps else None)
