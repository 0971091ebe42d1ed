"""Can the service start at all? Cheap checks before anything is downloaded or loaded."""

import importlib.util
import os
import socket
from collections.abc import Iterable

from scheduler_service.supervisor.errors import ServiceError

_NEEDED_MODULES = ("zmq", "msgspec", "tokenizers", "torch")


def check_packages() -> None:
    """Are the packages of all processes installed?

    Raises:
        ServiceError: some are not.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServiceError(
            f"the Python packages {', '.join(missing)} are not installed: pip install 'pagewire[all]' "
            "(the base install is the client alone)"
        )


def check_addresses(addresses: Iterable[str]) -> None:
    """Are the addresses well formed and free?

    Raises:
        ServiceError: one is not.
    """
    for address in addresses:
        if not address.startswith("unix:"):
            _check_tcp(address)


def _check_tcp(address: str) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ServiceError(f"{address!r} is no address to listen on: give HOST:PORT or unix:/path")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ServiceError(
            f"cannot listen on {address}: {reason}; stop the process that holds it or choose another port"
        ) from error
