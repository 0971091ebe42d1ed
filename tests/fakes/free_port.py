"""Which port can a test tell a process to listen on? One that nobody is given who asks for any."""

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_port(count: int = 1) -> int:
    """The first of so many free ports of 127.0.0.1 in a row, below those that the system hands out.

    A port that the system gave, and that was closed again, may be given to somebody else at any time.
    """
    first_given = int(_RANGE.read_text().split()[0])
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(_LOWEST, first_given - count)
        if all(_is_free(port + offset) for offset in range(count)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
