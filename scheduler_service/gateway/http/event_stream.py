"""How do server-sent events reach one caller? One at a time, as fast as the caller reads; a comment while all is quiet.

Nothing is kept here: whoever sends an event waits until the connection takes it.
"""

import asyncio
import time
from collections.abc import Mapping

from starlette.types import Send

_PING_PERIOD_S = 15.0
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """The answer to one request.

    Args:
        send: of the request.
        headers: besides those of every event stream.
        ping_period_s: longest silence.
    """

    def __init__(self, send: Send, headers: Mapping[str, str], ping_period_s: float = _PING_PERIOD_S) -> None:
        self._send = send
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._ping_period_s = ping_period_s
        self._last_sent_s = 0.0
        self._turn = asyncio.Lock()
        self.has_begun = False

    async def begin(self) -> None:
        """Send status and headers."""
        self.has_begun = True
        self._last_sent_s = time.monotonic()
        headers = [*_HEADERS, *self._headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, data: bytes, event_id: str = "") -> None:
        """Send one event."""
        head = f"id: {event_id}\n".encode() if event_id else b""
        await self._write(b"%sdata: %s\n\n" % (head, data))

    async def end(self) -> None:
        """Nothing follows."""
        async with self._turn:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ping_when_idle(self) -> None:
        """Let neither proxies nor the caller think that nobody is there. Runs until it is cancelled."""
        while True:
            quiet_s = time.monotonic() - self._last_sent_s if self.has_begun else 0.0
            if quiet_s >= self._ping_period_s:
                await self._write(b": ping\n\n")
                quiet_s = 0.0
            await asyncio.sleep(self._ping_period_s - quiet_s)

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_sent_s = time.monotonic()
