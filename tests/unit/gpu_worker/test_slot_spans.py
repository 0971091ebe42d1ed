"""Does a worker's trace of a sequence begin and end with its slot?"""

import time

import numpy as np

from gpu_worker.slot_spans import SlotSpans
from pagewire.ipc.requests import Sampling
from pagewire.ipc.spans import Tracer
from pagewire.ipc.steps import AddedSequence, StepBatch
from tests.fakes.otlp_collector import OtlpCollector

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def batch(step_id: int, added: dict[int, str] | None = None, removed: tuple[int, ...] = ()) -> StepBatch:
    """A step in which these slots are taken, with trace contexts, and given back."""
    sequences = [
        AddedSequence(slot, f"r{slot}", b"", 1, 0, b"", Sampling(0.0, 0, 1.0, 0.0, 0), trace_context=context)
        for slot, context in (added or {}).items()
    ]
    return StepBatch(step_id, np.array(removed, dtype="<i4").tobytes(), sequences, b"", b"", b"", b"", b"")


def test_a_span_lasts_as_long_as_the_slot() -> None:
    with OtlpCollector() as collector:
        spans = SlotSpans(Tracer(collector.endpoint, "test"), rank=1)
        now_s = time.monotonic()
        spans.note_launch(batch(0, {0: CONTEXT, 1: ""}), now_s)
        spans.note_launch(batch(1), now_s + 0.5)
        spans.note_answer(now_s, now_s + 1.0)
        spans.note_answer(now_s + 0.5, now_s + 3.0)
        # The slot's next sequence is another one.
        spans.note_launch(batch(2, {0: CONTEXT}, removed=(0, 1)), now_s + 3.0)
        spans.note_answer(now_s + 3.0, now_s + 4.0)
        spans.note_idle()
        spans.note_idle()
        spans.close()
        first, second = collector.wait_for(lambda received: len(received) == 2)
    assert {first.name, second.name} == {"worker"}
    assert first.span.parent_span_id.hex() == "b7ad6b7169203331"
    # Two steps at once take no more time than there is.
    assert first.attributes == {
        "gen_ai.response.id": "r0",
        "pagewire.rank": 1,
        "pagewire.num_steps": 2,
        "pagewire.step_seconds": 3.0,
    }
    assert round((first.span.end_time_unix_nano - first.span.start_time_unix_nano) / 1e9, 1) == 3.0
    assert (second.attributes["pagewire.num_steps"], second.attributes["pagewire.step_seconds"]) == (1, 1.0)
