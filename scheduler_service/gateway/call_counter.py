"""How many calls were there, of what kind, how did they end, and how long did they take?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_DURATION_EDGES = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip


@dataclass(slots=True)
class Call:
    """One call that is being counted. `code` is how it ends, as its protocol says that."""

    method: str
    code: str


class CallCounter:
    """Counts calls of every protocol.

    Args:
        registry: where the counts can be read.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # When a series began is a series of its own, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        labels = ("protocol", "method")
        self._calls = Counter(
            "pagewire:calls", "Calls that ended, and with which status.", (*labels, "code"), registry=registry
        )
        self._durations = Histogram(
            "pagewire:call_duration_seconds",
            "From a call's beginning to its end.",
            labels,
            buckets=_DURATION_EDGES,
            registry=registry,
        )

    @contextmanager
    def call(self, protocol: str, method: str, code: str) -> Iterator[Call]:
        """Around one call; method and `code`, how it ends, are these unless the call is told otherwise."""
        call = Call(method, code)
        start_s = time.monotonic()
        try:
            yield call
        finally:
            self._calls.labels(protocol, call.method, call.code).inc()
            self._durations.labels(protocol, call.method).observe(time.monotonic() - start_s)
