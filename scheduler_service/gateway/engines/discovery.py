"""Which engines are there? Those at plain addresses, always, and one at each address that a DNS name has now.

A look-up that fails, or finds nothing, changes nothing: engines work without DNS.
"""

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pagewire.ipc.curve import CurveError, check_keys
from scheduler_service.gateway.addresses import split_host_and_port
from scheduler_service.gateway.exceptions import StartError

logger = logging.getLogger(__name__)

DNS_PREFIX = "dns+tcp://"
_FLAG = "--scheduler-address"
_PLAIN_PREFIXES = ("tcp://", "ipc://", "inproc://")
_PERIOD_S = 5.0
# While a name has given nothing yet, somebody waits for it.
_FIRST_PERIOD_S = 1.0
# However often one is asked to look again.
_LEAST_PAUSE_S = 0.25
_MAX_NAME_CHARS = 253
_LABELS = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the IP addresses of a name, of which a port is to be used; an OSError says why it cannot."""


@dataclass(slots=True)
class _Name:
    """A DNS name: as it was given, in parts, and what is known of it."""

    address: str
    host: str
    port: int
    found: frozenset[str] = frozenset()
    is_failing: bool = False
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


class Discovery:
    """Follows the addresses of engines from `start` to `close`.

    Args:
        addresses: ZeroMQ addresses, each that of an engine, and `dns+tcp://NAME:PORT`.
        on_change: told the ZeroMQ addresses of all engines whenever they have changed; told again after a StartError.
        resolve: looks a name up.
        period_s: time between two look-ups of a name.
    Raises:
        StartError: an address is none.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        on_change: Callable[[frozenset[str]], None],
        resolve: Resolve | None = None,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._on_change = on_change
        self._resolve = resolve or look_up
        self._period_s = period_s
        self._plain = frozenset(address for address in addresses if not address.startswith(DNS_PREFIX))
        for address in self._plain:
            _check_plain(address)
        dns_addresses = sorted({*addresses} - self._plain)
        self._names = [_Name(address, *_split_name(address)) for address in dns_addresses]
        self._told: frozenset[str] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Tell the plain addresses at once, and the others when they are found.

        Raises:
            StartError: `on_change` has raised it.
        """
        self._tell()
        self._tasks = [asyncio.create_task(self._follow(name)) for name in self._names]

    def close(self) -> None:
        """Tell nothing more."""
        for task in self._tasks:
            task.cancel()

    def look_again(self) -> None:
        """Look all names up soon: there is reason to believe that they have changed."""
        for name in self._names:
            name.wanted.set()

    async def _follow(self, name: _Name) -> None:
        while True:
            name.wanted.clear()
            await self._look_up(name)
            await asyncio.sleep(min(self._period_s, _LEAST_PAUSE_S))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s if name.found else min(self._period_s, _FIRST_PERIOD_S)):
                    await name.wanted.wait()

    async def _look_up(self, name: _Name) -> None:
        hosts: Sequence[str] = ()
        problem = "it has no addresses"
        try:
            hosts = await self._resolve(name.host, name.port)
        except OSError as error:
            problem = error.strerror or str(error)
        if not hosts and not name.is_failing:
            logger.warning(
                "engines not found address=%s problem=%r num_known=%d", name.address, problem, len(name.found)
            )
        elif hosts and name.is_failing:
            logger.info("engines found again address=%s", name.address)
        name.is_failing = not hosts
        if hosts:
            name.found = frozenset(_zmq_address(host, name.port) for host in hosts)
            try:
                self._tell()
            except StartError as error:
                logger.error("engines not connected address=%s problem=%s", name.address, error)

    def _tell(self) -> None:
        addresses = self._plain.union(*(name.found for name in self._names))
        if addresses != self._told:
            logger.info("engines num=%d addresses=%s", len(addresses), ",".join(sorted(addresses)))
            self._on_change(addresses)
            self._told = addresses


def check_addresses(addresses: Sequence[str], curve_keys: Path | None) -> None:
    """Can engines be there, and are there keys for those of other machines?

    Raises:
        StartError: one is no address of an engine, or needs keys; the message says what to do.
    """
    for address in addresses:
        if not address.startswith(DNS_PREFIX):
            _check_plain(address)
            reached = address
        else:
            reached = _zmq_address(*_split_name(address))
        try:
            check_keys(reached, curve_keys)
        except CurveError as error:
            raise StartError(f"{_FLAG} {address}: {error}") from error


async def look_up(host: str, port: int) -> list[str]:
    """The IP addresses of a name: its IPv4 ones, or if there are none its IPv6 ones. Who has both is no two engines.

    The system's resolver may wait for long, in a thread, which does not hold up the end of the process.

    Raises:
        OSError: the name could not be looked up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def look() -> None:
        try:
            settle = partial(_settle, future, _hosts(host, port))
        except OSError as error:
            settle = partial(_settle, future, error)
        # The loop may be closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=look, name="look-up", daemon=True).start()
    return await future


def _hosts(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family = {
        wanted: [str(where[0]) for family, _, _, _, where in found if family == wanted]
        for wanted in (socket.AF_INET, socket.AF_INET6)
    }
    return by_family[socket.AF_INET] or by_family[socket.AF_INET6]


def _settle(future: "asyncio.Future[list[str]]", result: list[str] | OSError) -> None:
    if future.done():
        return
    if isinstance(result, OSError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _zmq_address(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _check_plain(address: str) -> None:
    if not address.startswith(_PLAIN_PREFIXES):
        raise StartError(
            f"{_FLAG} {address}: is no address of a scheduler; give one such as ipc:///run/pagewire/requests.sock or "
            f"tcp://10.0.0.7:5555, or {DNS_PREFIX}NAME:PORT for an engine at each address of a DNS name"
        )


def _split_name(address: str) -> tuple[str, int]:
    problem = f"not {DNS_PREFIX}NAME:PORT; give a DNS name and a port from 1 to 65535"
    host, port = split_host_and_port(address, _FLAG, problem)
    host = host.removeprefix(DNS_PREFIX).strip("[]")
    is_name = _LABELS.fullmatch(host) and len(host) <= _MAX_NAME_CHARS
    if not (is_name or _is_ipv6(host)) or not 1 <= port <= 65535:
        raise StartError(f"{_FLAG} {address}: is {problem}")
    return host, port


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return False
    return True
