"""An OpenTelemetry collector over HTTP, as far as spans go: takes what exporters post, and keeps it."""

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes.patience import PATIENCE_S


@dataclass(frozen=True)
class Received:
    """A span, the service that sent it, and its attributes as plain values."""

    service: str
    span: Span
    attributes: dict[str, object]

    @property
    def name(self) -> str:
        return self.span.name


class OtlpCollector:
    """Listens on a free port of 127.0.0.1 while its context is open."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                is_ours = (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                if is_ours:
                    collector._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if is_ours else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "OtlpCollector":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, condition: Callable[[list[Received]], bool]) -> list[Received]:
        """All spans so far, once the condition holds for them."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition(spans := list(self.spans)):
            assert time.monotonic() < deadline_s, f"only these came: {[span.name for span in spans]}"
            time.sleep(0.01)
        return spans

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            service = str(_values(list(resource.resource.attributes))["service.name"])
            for scope in resource.scope_spans:
                self.spans += [Received(service, span, _values(list(span.attributes))) for span in scope.spans]


def _values(pairs: list[KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
