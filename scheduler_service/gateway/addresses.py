"""How is a listen address bound, and what is said when it cannot be?"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import grpc

from scheduler_service.gateway.exceptions import StartError

_UNIX_PREFIX = "unix:"
_MAX_UNIX_PATH_BYTES = 107


def bind(
    server: grpc.aio.Server,
    address: str,
    credentials: Callable[[], grpc.ServerCredentials] | None = None,
    shares_port: bool = False,
) -> str:
    """Bind "host:port" or "unix:/path". Returns the address with the port that was taken.

    Args:
        server: serves there.
        address: where. A unix socket is plaintext: what protects it are the permissions of its directory.
        credentials: make those of one port; without, it is plaintext too.
        shares_port: other processes of this user may listen there as well.
    Raises:
        StartError: it is not an address, or in use.
    """
    if address.startswith(_UNIX_PREFIX):
        _check_unix_path(address)
        _add_port(server, address, None)
        return address
    host, port = split_host_and_port(address, "--listen", "neither HOST:PORT nor unix:/path")
    _check_host_and_port(host, port, address, shares_port)
    return f"{host}:{_add_port(server, address, credentials)}"


def split_host_and_port(address: str, flag: str, problem: str = "not HOST:PORT") -> tuple[str, int]:
    """Take "host:port" apart.

    Raises:
        StartError: it is not that; the message names the flag and the problem.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdecimal()):
        raise StartError(f"{flag} {address}: is {problem}")
    return host, int(port)


def _add_port(server: grpc.aio.Server, address: str, credentials: Callable[[], grpc.ServerCredentials] | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials())
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address}: {error}; choose another address") from error


def _check_host_and_port(host: str, port: int, address: str, shares_port: bool) -> None:
    """Try to bind first: gRPC prints pages about a port that it cannot have, and does not say why."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, socket_address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares_port))
                probe.bind(socket_address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"cannot listen on {address}: {reason}; choose another address") from error


def _check_unix_path(address: str) -> None:
    """gRPC takes over a socket file that exists, even one that another server is using: find out first."""
    path = Path(address.removeprefix(_UNIX_PREFIX))
    if len(os.fsencode(path)) > _MAX_UNIX_PATH_BYTES:
        raise StartError(f"cannot listen on {address}: the path is longer than {_MAX_UNIX_PATH_BYTES} bytes")
    if not path.parent.is_dir():
        raise StartError(f"cannot listen on {address}: the directory {path.parent} does not exist")
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise StartError(f"cannot listen on {address}: another server uses it; choose another path")
