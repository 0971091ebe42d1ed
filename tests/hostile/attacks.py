"""Which attacks are there, how much of each is much, and what is a service that stood it?"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.hostile import connection_attacks, http1_attacks, http2_attacks
from tests.hostile.bystanders import Bystanders
from tests.hostile.service import HostileService, Vitals

# Of one process, while it is attacked: thousands of streams and connections at once cost something.
_MAX_PEAK_BYTES = 512 << 20

Attack = Callable[[HostileService, int], list[str]]
"""Does so much of something to a service, and says what it noticed that is wrong."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of an attack a test does, and how much the long run. None: only the long run does it."""

    attack: Attack
    short: int | None
    long: int


ATTACKS: dict[str, Sizes] = {
    "dropped connections": Sizes(connection_attacks.dropped_connections, 600, 10_000),
    "unfinished bodies": Sizes(connection_attacks.unfinished_bodies, 40, 1000),
    "slow loris": Sizes(connection_attacks.slow_loris, 45, 600),
    "slow handshakes over HTTPS": Sizes(connection_attacks.slow_handshakes, None, 200),
    "smuggling": Sizes(http1_attacks.smuggling, 1, 50),
    "heads over HTTP/1": Sizes(http1_attacks.head_bombs, 1, 20),
    "ids of events": Sizes(http1_attacks.event_ids, 1, 50),
    "unread events": Sizes(http1_attacks.unread_events, 20, 100),
    "rapid reset": Sizes(http2_attacks.rapid_reset, 2000, 100_000),
    "late reset": Sizes(http2_attacks.late_reset, 200, 10_000),
    "unread streams": Sizes(http2_attacks.unread_streams, 50, 1000),
    "held streams": Sizes(http2_attacks.held_streams, 20_000, 100_000),
    "heads over HTTP/2": Sizes(http2_attacks.header_bombs, 1, 20),
    "continuation flood": Sizes(http2_attacks.continuation_flood, 50, 5000),
    "compression tables": Sizes(http2_attacks.table_abuse, 5, 500),
    "floods of frames": Sizes(http2_attacks.frame_floods, 20, 2000),
    "empty data": Sizes(http2_attacks.empty_data, 20, 5000),
    "random frames": Sizes(http2_attacks.random_frames, 50, 5000),
}


@dataclass(frozen=True, slots=True)
class Report:
    """How a service stood one attack; `wrong` is empty if well."""

    name: str
    size: int
    seconds: float
    num_answers: int
    peak_growth_bytes: int
    wrong: list[str]


def run_attacks(service: HostileService, sizes: dict[str, int]) -> Iterator[Report]:
    """Attack the service, one way after another, with callers who behave beside each."""
    before = service.vitals()
    for name, size in sizes.items():
        yield _run(service, name, size, before)


def _run(service: HostileService, name: str, size: int, before: Vitals) -> Report:
    start_s = time.monotonic()
    with Bystanders(service) as bystanders:
        wrong = ATTACKS[name].attack(service, size)
    seconds = time.monotonic() - start_s
    wrong += bystanders.wrong
    if not bystanders.num_answers:
        wrong.append("no bystander was answered")
    if bystanders.peak_growth_bytes > _MAX_PEAK_BYTES:
        wrong.append(f"a process grew by {bystanders.peak_growth_bytes >> 20} MiB")
    wrong += service.complaints(before)
    return Report(name, size, seconds, bystanders.num_answers, bystanders.peak_growth_bytes, wrong)
