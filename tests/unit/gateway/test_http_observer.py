"""Are HTTP requests counted by route and status, with few routes however many paths are asked for?"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler_service.gateway.call_counter import CallCounter
from scheduler_service.gateway.http.metrics import HttpObserver
from scheduler_service.gateway.trace_parent import TraceParent, trace_parent


class App:
    """An application under observation."""

    def __init__(self, *, traces: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.parents: list[TraceParent] = []
        observer = Middleware(HttpObserver, counter=CallCounter(self.registry), traces=traces)
        routes = [
            Route("/v1/models/{name:path}", self._answer),
            Route("/v1/{kind}/of/{name}/now", self._answer),
            Route("/fail", self._fail),
        ]
        self._app = Starlette(routes=routes, middleware=[observer])

    def get(self, path: str, *headers: tuple[bytes, bytes], method: str = "GET") -> int | None:
        """Ask; gives the status."""
        scope = {
            "type": "http", "method": method, "path": path, "headers": list(headers), "http_version": "1.1",
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("x", 1), "client": ("y", 2),
        }  # fmt: skip
        statuses: list[int] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        asyncio.run(self._app(scope, receive, send))
        return statuses[0] if statuses else None

    def counted(self) -> dict[tuple[str, str], float]:
        """Requests by route and status."""
        (family,) = [family for family in self.registry.collect() if family.name == "pagewire:calls"]
        return {(sample.labels["method"], sample.labels["code"]): sample.value for sample in family.samples}

    async def _answer(self, _request: Request) -> Response:
        self.parents.append(trace_parent())
        return Response("x")

    async def _fail(self, _request: Request) -> Response:
        raise RuntimeError("a fault")


def test_requests_are_counted_by_route() -> None:
    app = App()
    for path in ("/v1/models/a", "/v1/models/b", "/v1/models/", "/x/y", "/x/z"):
        app.get(path)
    assert app.get("/v1/models/c", method="POST") == 405
    assert app.counted() == {
        ("/v1/models/{name}", "200"): 3,
        ("other", "404"): 2,
        ("/v1/models/{name}", "405"): 1,
    }


def test_a_fault_is_counted() -> None:
    app = App()
    with pytest.raises(RuntimeError):
        app.get("/fail")
    assert app.counted() == {("/fail", "500"): 1}


@pytest.mark.parametrize("traces", [True, False])
def test_a_request_learns_its_trace(traces: bool) -> None:
    app = App(traces=traces)
    app.get("/v1/models/a", (b"traceparent", b"00-a-b-01"), (b"tracestate", b"x=y"))
    assert app.parents == [TraceParent("00-a-b-01", "x=y") if traces else TraceParent()]


@pytest.mark.parametrize("name", ["m", "/", "models", "v1/models/", "s/s/s/s", "1", ""])
def test_a_parameter_may_be_a_text_that_stands_elsewhere_in_the_path(name: str) -> None:
    app = App()
    app.get(f"/v1/models/{name}")
    assert app.counted() == {("/v1/models/{name}", "200"): 1.0}


def test_several_parameters_are_told_apart() -> None:
    app = App()
    app.get("/v1/a/of/o/now")
    assert app.counted() == {("/v1/{kind}/of/{name}/now", "200"): 1.0}
