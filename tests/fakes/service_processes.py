"""The processes of a running service, found by their command lines, for tests that kill them."""

import time
from collections.abc import Iterable

import psutil

from pagewire_client import LocalService
from tests.fakes.patience import PATIENCE_S


def children(service: LocalService, name: str) -> list[psutil.Process]:
    """Running processes of the service with this part in their command lines."""
    found = []
    for process in psutil.Process(service._process.pid).children():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def child(service: LocalService, name: str) -> psutil.Process:
    """The one running process of the service with this part in its command line."""
    return wait_for_child(service, name)


def wait_for_child(service: LocalService, name: str, not_pid: int | None = None) -> psutil.Process:
    """The same, once there is one, which is not that of the given pid."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        found = [process for process in children(service, name) if process.pid != not_pid]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError(f"no process {name!r} came back")


def resident_bytes(pid: int) -> int:
    """Memory that a process has in use."""
    return int(psutil.Process(pid).memory_info().rss)


def left_of(processes: Iterable[psutil.Process], limit_s: float = PATIENCE_S) -> list[psutil.Process]:
    """Those that still run when time is up. A zombie has ended, though nobody may have heard of its end yet."""
    deadline_s = time.monotonic() + limit_s
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
