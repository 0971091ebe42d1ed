"""How much CPU time does something take? Of this thread, and of the other threads of this process (ZeroMQ's)."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU time."""

    own_s: float
    others_s: float


def cpu_of(work: Callable[[], None]) -> Cpu:
    """Of one call."""
    process_s, thread_s = time.process_time(), time.thread_time()
    work()
    own_s = time.thread_time() - thread_s
    return Cpu(own_s, time.process_time() - process_s - own_s)


def median(each: Sequence[Cpu]) -> Cpu:
    """The middle one of several, of both kinds of time."""
    return Cpu(statistics.median(cpu.own_s for cpu in each), statistics.median(cpu.others_s for cpu in each))
