"""How is a request's body read, and how much of it? Bounded in size, in time, and over all callers together."""

import asyncio
from http import HTTPStatus

from starlette.requests import Request

from scheduler_service.gateway.http.errors import HttpError

_TIMEOUT_S = 60.0
_MAX_TOTAL_BYTES = 256 << 20
# Of a body that is too large so much is read and dropped, for its caller to get to the answer.
_MAX_DROPPED_BYTES = 64 << 20


class BodyReader:
    """Reads bodies.

    Args:
        max_bytes: of one body.
        max_total_bytes: of all that are being read.
        timeout_s: for one body.
    """

    def __init__(
        self, max_bytes: int, *, max_total_bytes: int = _MAX_TOTAL_BYTES, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._max_bytes = max_bytes
        self._max_total_bytes = max(max_total_bytes, max_bytes)
        self._timeout_s = timeout_s
        self._num_bytes = 0

    async def read_json(self, request: Request) -> bytes:
        """Read the body of a request that says it is JSON.

        Raises:
            HttpError: it is something else, too large or too slow.
            ClientDisconnect: its caller is gone.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "identity").lower()
        if kind != "application/json" or encoding != "identity":
            said = f"{kind or 'no type'}{'' if encoding == 'identity' else f' in {encoding}'}"
            message = f"the body is {said}: send plain JSON with Content-Type: application/json"
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(request)
        except TimeoutError:
            message = f"the body did not come within {self._timeout_s:g} s"
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, message) from None

    async def _read(self, request: Request) -> bytes:
        body, num_dropped = bytearray(), 0
        try:
            async for part in request.stream():
                if num_dropped or len(body) + len(part) > self._max_bytes:
                    num_dropped += len(part)
                    if num_dropped > _MAX_DROPPED_BYTES:
                        break
                    continue
                self._num_bytes += len(part)
                body += part
                if self._num_bytes > self._max_total_bytes:
                    raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests come in: try again later")
        finally:
            self._num_bytes -= len(body)
        if num_dropped:
            message = f"the body is larger than the {self._max_bytes} bytes of --max-message-bytes"
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return bytes(body)
