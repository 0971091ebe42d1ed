"""The processes of a running service, found by their command lines, for tests that kill them."""

import time

import psutil

from pagewire_client import LocalService

_TIMEOUT_S = 20.0


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
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        found = [process for process in children(service, name) if process.pid != not_pid]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError(f"no process {name!r} came back")
