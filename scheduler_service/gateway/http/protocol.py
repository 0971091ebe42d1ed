"""What may one HTTP connection take? The parser's limits, a time limit for heads, and a number of connections.

Uvicorn's protocol over h11, which takes only what RFC 9112 allows: no bare line ends, no spaces before colons, no
conflicting lengths, no folded surprises for whoever stands in front. Uvicorn bounds a head's size only with h11.
"""

import asyncio
import sys
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from scheduler_service.gateway.http.errors import error_body


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of all callers together, and of each.

    A head may have `max_head_bytes`, and up to twice that if it comes at once. `head_timeout_s` is the time from a
    request's first byte (of the first request: from the connection's opening) to the end of its head;
    `idle_timeout_s` how long a connection without a request is kept.
    """

    max_connections: int
    max_head_bytes: int = 16_384
    head_timeout_s: float = 10.0
    idle_timeout_s: int = 75


class LimitedProtocol(H11Protocol):
    """One connection.

    Args:
        limits: what it may take.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, if there is room for one more."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections: try again later")
            return
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; time a head until it is complete."""
        # The parser counts a head's bytes only while it is incomplete, so it gets no more than that at once.
        for start in range(0, len(data), self._limits.max_head_bytes):
            if not self.transport.is_closing():
                super().data_received(data[start : start + self._limits.max_head_bytes])
        self._time_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP/1; called while the parser's exception is handled."""
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else HTTPStatus.BAD_REQUEST
        self._refuse(HTTPStatus(hint), f"this is no valid HTTP/1 request: {error or msg}")

    def _time_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._head_overdue)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request's head took too long")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer without asking the application, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(status, message)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            response = h11.Response(status_code=status.value, headers=headers, reason=status.phrase.encode())
            for event in (response, h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
