"""Can gateways listen where they are told to? Each address is tried before any process is started."""

import errno
import os
import re
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scheduler_service.supervisor.children import listen_address
from scheduler_service.supervisor.errors import ServiceError

_UNIX_PREFIX = "unix:"
_TCP = re.compile(r"(?P<host>[^:\[\]]+|\[[^\[\]]+\]):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535
_MAX_SOCKET_PATH_BYTES = 107
_ADVICE = {
    errno.EADDRINUSE: "stop the process that holds it or choose another port",
    errno.EADDRNOTAVAIL: "give an address of this machine, or 0.0.0.0 for all of them",
    errno.EACCES: "choose a port above 1023",
}


def check_addresses(
    addresses: Iterable[str], num_gateways: int = 1, never_shared: Iterable[str] = (), shares_port: bool = False
) -> None:
    """Are the addresses of all gateways well formed, free and distinct?

    Args:
        addresses: of the first gateway.
        num_gateways: how many there are.
        never_shared: further addresses of the first gateway.
        shares_port: the others use the same ports of `addresses`.
    Raises:
        ServiceError: one is not.
    """
    taken: set[str] = set()
    pairs = [(address, shares_port) for address in addresses] + [(address, False) for address in never_shared]
    for address, is_shared in pairs:
        num_ports = 1 if is_shared and not address.startswith(_UNIX_PREFIX) else num_gateways
        _check_form(address, num_ports)
        if is_shared and address.endswith(":0"):
            raise ServiceError(f"{address} cannot be shared: give the port that all gateways are to listen on")
        for gateway in range(num_ports):
            wanted = listen_address(address, gateway)
            if wanted in taken:
                raise ServiceError(f"{wanted} would be listened on twice: give --listen addresses further apart")
            if not wanted.endswith(":0"):
                taken.add(wanted)
            if wanted.startswith(_UNIX_PREFIX):
                _try_unix(wanted)
            else:
                _try_tcp(wanted)


def _check_form(address: str, num_gateways: int) -> None:
    if address.startswith(_UNIX_PREFIX):
        if address == _UNIX_PREFIX:
            raise ServiceError(f"{address!r} is no address to listen on: give a path, such as unix:/run/pagewire.sock")
        return
    match = _TCP.fullmatch(address)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ServiceError(f"{address!r} is no address to listen on: give HOST:PORT, [IPV6]:PORT or unix:/path")
    port = int(match["port"])
    if port and port + num_gateways - 1 > _MAX_PORT:
        raise ServiceError(
            f"{num_gateways} gateways from {address} on need ports up to {port + num_gateways - 1}, and {_MAX_PORT} is "
            "the last: give a lower port or fewer --gateways"
        )


def _try_tcp(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise ServiceError(f"cannot listen on {address}: {reason}; check the host {host}") from error
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except OSError as error:
        number = error.errno or 0
        advice = _ADVICE.get(number, "choose another address")
        raise ServiceError(f"cannot listen on {address}: {os.strerror(number)}; {advice}") from error


def _try_unix(address: str) -> None:
    path = Path(address.removeprefix(_UNIX_PREFIX))
    obstacle = _obstacle_to(path)
    if obstacle is not None:
        raise ServiceError(f"cannot listen on {address}: {obstacle}")


def _obstacle_to(path: Path) -> str | None:
    """What keeps a gateway from binding a socket here, and what to do; a dead server's socket is replaced."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        return f"the path is longer than {_MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one"
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return "there is a file that is no socket; choose another path"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                return "another server uses it; stop that one or choose another path"
        return None if os.access(path.parent, os.W_OK) else "its directory cannot be written; choose another path"
    except FileNotFoundError:
        return _try_bind(path)
    except OSError as error:
        return f"{error.strerror}; choose another path"


def _try_bind(path: Path) -> str | None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(str(path))
        with suppress(FileNotFoundError):
            path.unlink()
    except OSError as error:
        reason = f"the directory {path.parent} does not exist" if error.errno == errno.ENOENT else error.strerror
        return f"{reason}; choose another path"
    return None
