"""What do /healthz and /readyz say? A server for probes alone: GET and HEAD of these two paths, one per connection.

/healthz   200 while this gateway and its scheduler make progress, or start; else 503
/readyz    200 while requests should be sent here; else 503
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus

from pagewire.ipc.supervision import ProcessState
from scheduler_service.gateway.addresses import split_host_and_port
from scheduler_service.gateway.exceptions import StartError
from scheduler_service.gateway.service_state import Finding, ServiceState

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 8192
_REQUEST_TIMEOUT_S = 5.0
_NOT_LIVE = (ProcessState.HUNG, ProcessState.DEAD)
_Answer = tuple[HTTPStatus, dict[str, object]]


@dataclass(frozen=True, slots=True)
class HttpHealth:
    """A server that listens, and where."""

    server: asyncio.Server
    address: str


async def serve_http_health(address: str, state: ServiceState) -> HttpHealth:
    """Listen at HOST:PORT; port 0 takes a free one.

    Raises:
        StartError: the address cannot be used.
    """
    host, port = split_host_and_port(address, "--http")
    try:
        server = await asyncio.start_server(
            lambda r, w: _serve(r, w, state), host.strip("[]"), port, limit=_MAX_REQUEST_BYTES
        )
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"cannot listen on {address}: {reason}; choose another --http address") from error
    return HttpHealth(server, f"{host}:{server.sockets[0].getsockname()[1]}")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: ServiceState) -> None:
    """Answer one request and close."""
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_respond(head, state))
            await writer.drain()
    except asyncio.LimitOverrunError:
        writer.write(_encode((HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, {}), has_body=True))
    except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
        logger.debug("probe dropped error=%s", error)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _respond(head: bytes, state: ServiceState) -> bytes:
    parts = head.partition(b"\r\n")[0].split(b" ")
    method, path, version = parts if len(parts) == 3 else (b"", b"", b"")
    answer = _answer(method, path.partition(b"?")[0], version, state)
    return _encode(answer, has_body=method != b"HEAD")


def _answer(method: bytes, path: bytes, version: bytes, state: ServiceState) -> _Answer:
    pages: dict[bytes, Callable[[Finding], bool]] = {b"/healthz": _is_live, b"/readyz": lambda found: found.is_serving}
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return HTTPStatus.BAD_REQUEST, {"error": "this is no HTTP/1 request"}
    if path not in pages:
        return HTTPStatus.NOT_FOUND, {"error": "there are /healthz and /readyz"}
    if method not in (b"GET", b"HEAD"):
        return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"}
    found = state.find()
    status = HTTPStatus.OK if pages[path](found) else HTTPStatus.SERVICE_UNAVAILABLE
    processes = [asdict(process) for process in state.report.processes] if state.report is not None else []
    return status, {"state": found.state, "reason": found.reason, "processes": processes}


def _is_live(found: Finding) -> bool:
    return found.state not in _NOT_LIVE


def _encode(answer: _Answer, has_body: bool) -> bytes:
    status, fields = answer
    body = json.dumps(fields).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
        f"{'Allow: GET, HEAD' + chr(13) + chr(10) if status is HTTPStatus.METHOD_NOT_ALLOWED else ''}\r\n"
    )
    return head.encode() + (body if has_body else b"")
