"""What do metrics look like to Prometheus?"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pagewire.ipc.metrics import Buckets, Family, MetricKind

_KINDS = {MetricKind.COUNTER: CounterMetricFamily, MetricKind.GAUGE: GaugeMetricFamily}


def to_metrics(families: Iterable[Family], labels: Mapping[str, str]) -> Iterator[Metric]:
    """The families as prometheus_client has them, each sample with these labels too."""
    for family in families:
        if family.buckets is not None:
            yield _histogram(family, family.buckets, labels)
            continue
        names = [*labels, *(family.samples[0].labels if family.samples else ())]
        metric = _KINDS[family.kind](family.name, family.help, labels=names)
        for sample in family.samples:
            metric.add_metric([*labels.values(), *sample.labels.values()], sample.value)
        yield metric


def render(parts: Iterable[tuple[Iterable[Family], Mapping[str, str]]]) -> bytes:
    """Families of several origins, each with its labels, as one text."""
    metrics: dict[str, Metric] = {}
    for families, labels in parts:
        for metric in to_metrics(families, labels):
            metrics.setdefault(metric.name, metric)
            if metrics[metric.name] is not metric:
                metrics[metric.name].samples += metric.samples
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(list(metrics.values())))
    return generate_latest(registry)


class _Fixed(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _histogram(family: Family, buckets: Buckets, labels: Mapping[str, str]) -> Metric:
    names = [*map(floatToGoString, buckets.edges), "+Inf"]
    at_most, below = [], 0
    for name, count in zip(names, buckets.counts, strict=True):
        below += count
        at_most.append((name, below))
    metric = HistogramMetricFamily(family.name, family.help, labels=list(labels))
    metric.add_metric(list(labels.values()), buckets=at_most, sum_value=buckets.sum)
    return metric
