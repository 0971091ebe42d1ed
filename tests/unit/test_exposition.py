"""Does Prometheus read what we write? By its own parser."""

from prometheus_client.parser import text_string_to_metric_families

from pagewire.ipc.exposition import render
from pagewire.ipc.metrics import Buckets, Family, MetricKind, Sample, counter, gauge

LABELS = {"model_name": 'a "model"\\ of\nmine', "engine": "0"}


def parsed(*families: Family) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by sample name and the values of its own labels; every sample has the common ones."""
    text = render([(families, LABELS)]).decode()
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in LABELS}
            assert {name: sample.labels[name] for name in LABELS} == LABELS
            values.setdefault(sample.name, {})[tuple(own.values())] = sample.value
    return values


def test_counters_and_gauges() -> None:
    reasons = [Sample(1, {"reason": "full"}), Sample(2, {"reason": "late"})]
    values = parsed(
        counter("vllm:prompt_tokens", "Tokens.", 3),
        gauge("vllm:num_requests_running", "Now.", 0.5),
        Family("pagewire:refused", MetricKind.COUNTER, "Why.", reasons),
        Family("pagewire:nothing_yet", MetricKind.GAUGE, "None."),
    )
    assert values == {
        "vllm:prompt_tokens_total": {(): 3},
        "vllm:num_requests_running": {(): 0.5},
        "pagewire:refused_total": {("full",): 1, ("late",): 2},
    }


def test_a_histogram_is_cumulative() -> None:
    buckets = Buckets((0.5, 1.0, 2560.0), [1, 0, 2, 3], 7.25)
    values = parsed(Family("vllm:e2e_request_latency_seconds", MetricKind.HISTOGRAM, "Time.", buckets=buckets))
    assert values == {
        "vllm:e2e_request_latency_seconds_bucket": {("0.5",): 1, ("1.0",): 1, ("2560.0",): 3, ("+Inf",): 6},
        "vllm:e2e_request_latency_seconds_count": {(): 6},
        "vllm:e2e_request_latency_seconds_sum": {(): 7.25},
    }


def test_a_histogram_may_be_called_a_total_as_vllm_does() -> None:
    buckets = Buckets((1.0,), [0, 2], 9.0)
    values = parsed(Family("vllm:iteration_tokens_total", MetricKind.HISTOGRAM, "Tokens.", buckets=buckets))
    assert values["vllm:iteration_tokens_total_count"] == {(): 2}
