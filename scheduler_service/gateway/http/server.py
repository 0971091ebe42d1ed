"""How is HTTP served beside gRPC, in the gateway's own event loop? Uvicorn, without its signals, logs and flags."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from scheduler_service.gateway.addresses import split_host_and_port
from scheduler_service.gateway.exceptions import StartError
from scheduler_service.gateway.http.protocol import ConnectionLimits, LimitedProtocol

_BACKLOG = 2048
# A caller whose machine is gone is found out after KEEPIDLE + KEEPCNT * KEEPINTVL seconds.
_TCP_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


@dataclass(frozen=True, slots=True)
class BoundHttp:
    """Sockets that listen, and the address that says where."""

    sockets: tuple[socket.socket, ...]
    address: str


def bind_http(address: str, shares_port: bool = False) -> BoundHttp:
    """Listen at HOST:PORT, on all addresses that the host has; port 0 takes a free one.

    Args:
        address: where.
        shares_port: other processes of this user may listen there as well.
    Raises:
        StartError: the address cannot be used.
    """
    host, port = split_host_and_port(address, "--http")
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, socket_address in dict.fromkeys(found):
            taken = (socket_address[0], port, *socket_address[2:])
            sockets.append(_listen(family, taken, shares_port))
            port = sockets[0].getsockname()[1]
    except (OSError, OverflowError, UnicodeError) as error:
        for listener in sockets:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"cannot listen on {address}: {reason}; choose another --http address") from error
    return BoundHttp(tuple(sockets), f"{host}:{port}")


class HttpServer:
    """Serves an application on sockets that listen, from construction on.

    Args:
        bound: where to listen; closed at the end.
        app: answers the requests.
        limits: what one caller may take.
        tls: for HTTPS.
    """

    def __init__(
        self, bound: BoundHttp, app: ASGIApp, limits: ConnectionLimits, tls: ssl.SSLContext | None = None
    ) -> None:
        self.address = bound.address
        config = uvicorn.Config(
            app,
            http=partial(LimitedProtocol, limits=limits),  # type: ignore[arg-type]  # any maker of protocols does
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle_timeout_s,
            timeout_graceful_shutdown=0,  # answers have had their time when uvicorn is told to end
            h11_max_incomplete_event_size=limits.max_head_bytes,
        )
        config.load()
        config.ssl = tls
        self._server = _QuietServer(config)
        self._serving = asyncio.create_task(self._server.serve(list(bound.sockets)))

    async def stop(self, timeout_s: float) -> None:
        """Take no more connections; give answers that are on their way this long, then cut them."""
        answers = list(self._server.server_state.tasks)
        if answers:
            await asyncio.wait(answers, timeout=timeout_s)
        self._server.should_exit = True
        await self._serving


class _QuietServer(uvicorn.Server):
    """The process handles its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(family: int, address: tuple[object, ...], shares_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares_port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _TCP_KEEPALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
