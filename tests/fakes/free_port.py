"""Which port can a test tell a process to listen on? One that nobody is given who asks for any."""

import os
import random
import socket
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _END = 10_000, 65_536
_FEWEST = 1_000


def free_port(count: int = 1) -> int:
    """The first of so many free ports of 127.0.0.1 in a row, outside of those that the system hands out.

    A port that the system gave, and that was closed again, may be given to somebody else at any time. Processes that
    run tests beside each other choose among ports of their own: each looks whether a port is free some time before the
    process that is to listen there does so.
    """
    ports = _own_ports()
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(ports.start, ports.stop - count)
        if all(_is_free(port + offset) for offset in range(count)):
            return port


def _own_ports() -> range:
    """The share of this process: of those that nobody is given, or of all where nearly all are given."""
    first_given, last_given = map(int, _GIVEN.read_text().split())
    ports = max(range(_LOWEST, first_given), range(last_given + 1, _END), key=len)
    if len(ports) < _FEWEST:
        ports = range(_LOWEST, _END)
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % num_processes
    share = len(ports) // num_processes
    return ports[number * share : (number + 1) * share]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
