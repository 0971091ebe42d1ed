"""Does a sequence's trace say what happened to it in the scheduler? As a collector receives it."""

import pytest

from pagewire.ipc.spans import Tracer
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.metrics.sequence_spans import SequenceSpans
from tests.fakes.otlp_collector import OtlpCollector, Received
from tests.unit.core.harness import Harness

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE}-{PARENT}-01"


class TracedHarness(Harness):
    """A harness whose sequences are traced."""

    def __init__(self, collector: OtlpCollector, **config: int) -> None:
        super().__init__(**config)
        self.tracer = Tracer(collector.endpoint, "test")
        self.scheduler.metrics = EngineMetrics(self.config.max_num_seqs, 1000, SequenceSpans(self.tracer))

    def spans(self, collector: OtlpCollector) -> list[Received]:
        """All that were sent."""
        self.tracer.close()
        return list(collector.spans)


@pytest.fixture
def collector():
    with OtlpCollector() as running:
        yield running


def test_only_sequences_with_a_context_are_traced(collector: OtlpCollector) -> None:
    harness = TracedHarness(collector)
    harness.add(1, [1, 2], max_tokens=3)
    harness.add(2, [1, 2], max_tokens=3, trace_context=CONTEXT)
    harness.add(3, [1, 2], max_tokens=3, trace_context=CONTEXT[:-2] + "00")
    harness.run()
    spans = harness.spans(collector)
    assert sorted(span.name for span in spans) == ["decode", "prefill", "queue", "scheduler"]
    (scheduler,) = [span for span in spans if span.name == "scheduler"]
    assert scheduler.span.parent_span_id.hex() == PARENT
    assert scheduler.attributes["gen_ai.response.id"] == "r2"
    assert {span.span.trace_id.hex() for span in spans} == {TRACE}


def test_what_the_workers_do_belongs_to_the_schedulers_span(collector: OtlpCollector) -> None:
    harness = TracedHarness(collector)
    harness.add(1, [1, 2], max_tokens=3, trace_context=CONTEXT)
    assert harness.schedule()
    (added,) = harness.worker.queue[0].added
    harness.run()
    (scheduler,) = [span for span in harness.spans(collector) if span.name == "scheduler"]
    assert added.trace_context == f"00-{TRACE}-{scheduler.span.span_id.hex()}-01"


def test_a_lost_worker_and_a_cancel_show(collector: OtlpCollector) -> None:
    harness = TracedHarness(collector)
    harness.add(1, [1, 2], max_tokens=30, trace_context=CONTEXT)
    for _ in range(3):
        harness.schedule()
        harness.finish_step()
    harness.lose_worker()
    harness.abort(1)
    (scheduler,) = [span for span in harness.spans(collector) if span.name == "scheduler"]
    assert [event.name for event in scheduler.span.events] == ["requeued"]
    assert scheduler.attributes["pagewire.outcome"] == scheduler.attributes["error.type"] == "cancelled"
    assert scheduler.span.status.code == scheduler.span.status.STATUS_CODE_ERROR


def test_who_never_ran_was_only_in_the_queue(collector: OtlpCollector) -> None:
    harness = TracedHarness(collector)
    harness.add(1, [1, 2], max_tokens=30, trace_context=CONTEXT)
    harness.abort(1)
    (scheduler,) = harness.spans(collector)
    assert scheduler.name == "scheduler"
    assert "gen_ai.latency.time_in_queue" not in scheduler.attributes
