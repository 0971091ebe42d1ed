"""What holds for every HTTP request, whatever its path? Framing without doubt, and connections that end in time."""

from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler_service.gateway.http.errors import error_body
from scheduler_service.gateway.open_calls import OpenCalls

_CLOSE = (b"connection", b"close")


class Manners:
    """Wraps the application.

    A connection is closed after its answer when the gateway drains, so that its caller goes to another one, and when
    the answer came before the request's body, of which nobody then reads the rest.

    Args:
        app: what is wrapped.
        calls: tells whether the gateway drains.
    """

    def __init__(self, app: ASGIApp, calls: OpenCalls) -> None:
        self._app = app
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        is_chunked = "transfer-encoding" in headers
        body_is_read = not is_chunked and headers.get("content-length", "0") == "0"

        async def noting_receive() -> MutableMapping[str, Any]:
            nonlocal body_is_read
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body_is_read = True
            return message

        async def closing_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and (self._calls.is_draining or not body_is_read):
                message["headers"] = [*message.get("headers", ()), _CLOSE]
            await send(message)

        app = self._app
        if scope["http_version"] not in ("1.0", "1.1"):
            app = _refusal("this is no HTTP/1 request")
        elif is_chunked and "content-length" in headers:
            app = _refusal("both Content-Length and Transfer-Encoding say how long the body is: send one of them")
        await app(scope, noting_receive, closing_send)


def _refusal(message: str) -> Response:
    body = error_body(HTTPStatus.BAD_REQUEST, message)
    return Response(body, HTTPStatus.BAD_REQUEST.value, {"Connection": "close"}, "application/json")
