"""How do spans reach an OTLP collector? By HTTP, from a thread of the OpenTelemetry SDK.

Spans know each other by the W3C traceparent of their context, which travels in our messages. Whether a request is
traced is decided once, where it comes in; the others follow.
"""

import signal
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | bool | int | float | Sequence[str]

_PATH = "/v1/traces"
# A collector that does not answer must not hold up the end of a process.
_FLUSH_S = 1.0
_PROPAGATOR = TraceContextTextMapPropagator()


class Span:
    """Something that takes time. Times are Unix seconds; None is now."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> str:
        """The traceparent of what belongs to it."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return carrier["traceparent"]

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Say more about it."""
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None, at_s: float | None = None) -> None:
        """Something happened meanwhile."""
        self._span.add_event(name, attributes, _ns(at_s))

    def fail(self, kind: str, message: str) -> None:
        """It did not come to its end; `kind` is a short name of the reason."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, message))

    def end(self, at_s: float | None = None) -> None:
        """It is over, and is sent."""
        self._span.end(_ns(at_s))


class Tracer:
    """Starts spans of this process.

    Args:
        endpoint: URL of the collector; None: the OTEL_* variables say it.
        service: name of this process.
    """

    def __init__(self, endpoint: str | None, service: str) -> None:
        resource = Resource.create({"service.name": service})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Signals are the main thread's, whose waiting they end.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(_traces_url(endpoint))))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._tracer = self._provider.get_tracer("pagewire")

    def start(
        self, name: str, parent: str, *, is_server: bool = False, at_s: float | None = None, tracestate: str = ""
    ) -> Span | None:
        """Start a span; None if its trace is not sampled.

        Args:
            parent: traceparent of what it belongs to; empty or ill: it begins a trace.
            is_server: whether it answers somebody else's call.
            at_s: Unix seconds.
            tracestate: that came with the parent.
        """
        context = _PROPAGATOR.extract({"traceparent": parent, "tracestate": tracestate}) if parent else None
        kind = trace.SpanKind.SERVER if is_server else trace.SpanKind.INTERNAL
        span = self._tracer.start_span(name, context, kind, start_time=_ns(at_s))
        return Span(span) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left, as far as the collector takes it quickly."""
        closing = threading.Thread(target=self._provider.shutdown, name="otlp-shutdown", daemon=True)
        closing.start()
        closing.join(_FLUSH_S)


def unix_s(monotonic_s: float) -> float:
    """The Unix time of a moment of the monotonic clock, which is not far away."""
    return time.time() - (time.monotonic() - monotonic_s)


def _traces_url(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    return endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH


def _ns(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s * 1e9)
