"""How do metrics travel? As families with their samples, which whoever is asked for them turns into text.

That costs the process that counts a fraction of what the text would: see `exposition.py`.
"""

import enum

import msgspec


class MetricKind(enum.StrEnum):
    """What Prometheus calls the type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Sample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One value of a counter or a gauge, with the labels that it has beside those of the whole message."""

    value: float
    labels: dict[str, str] = {}


class Buckets(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A histogram: counts[i] values are up to edges[i] and above the edge before; the last ones are above all."""

    edges: tuple[float, ...]
    counts: list[int]
    sum: float


class Family(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One metric. A counter's name is given without `_total`. `buckets` are a histogram's, `samples` the others'."""

    name: str
    kind: MetricKind
    help: str
    samples: list[Sample] = []
    buckets: Buckets | None = None


def counter(name: str, text: str, value: float) -> Family:
    """A counter with one value."""
    return Family(name, MetricKind.COUNTER, text, [Sample(value)])


def gauge(name: str, text: str, value: float) -> Family:
    """A gauge with one value."""
    return Family(name, MetricKind.GAUGE, text, [Sample(value)])
