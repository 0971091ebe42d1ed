"""What does GET /metrics say, and how are HTTP requests counted?"""

from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler_service.gateway.call_counter import CallCounter
from scheduler_service.gateway.metrics import CONTENT_TYPE, GatewayMetrics
from scheduler_service.gateway.trace_parent import TraceParent, set_trace_parent

# Callers choose paths, and each one that is counted costs memory.
_UNKNOWN_PATH = "other"
# What a caller gets whose request raised something that nobody expected.
_FAULT = "500"


def metrics_routes(metrics: GatewayMetrics) -> list[Route]:
    """GET and HEAD of /metrics."""

    async def answer(_request: Request) -> Response:
        return Response(await metrics.render(), headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE)

    return [Route("/metrics", answer)]


class HttpObserver:
    """Wraps the application: counts requests by route, and tells who answers which trace they belong to.

    Args:
        app: what is wrapped.
        counter: told of each request.
        traces: whether requests learn their traces.
    """

    def __init__(self, app: ASGIApp, counter: CallCounter, traces: bool) -> None:
        self._app = app
        self._counter = counter
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._traces:
            set_trace_parent(_parent(scope))
        with self._counter.call("http", _UNKNOWN_PATH, "no answer") as call:

            async def noting_send(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    call.code = str(message["status"])
                await send(message)

            try:
                await self._app(scope, receive, noting_send)
            except Exception:
                call.code = _FAULT
                raise
            finally:
                call.method = _route(scope)


def _route(scope: Scope) -> str:
    """The path as the router has it, with the names of its parameters."""
    endpoint = scope.get("endpoint")
    routes = (route for route in scope["app"].routes if isinstance(route, Route) and route.endpoint is endpoint)
    route = next(routes, None)
    return _UNKNOWN_PATH if route is None else route.path_format


def _parent(scope: Scope) -> TraceParent:
    found = {key: value.decode("latin-1") for key, value in scope["headers"] if key in (b"traceparent", b"tracestate")}
    return TraceParent(found.get(b"traceparent", ""), found.get(b"tracestate", ""))
