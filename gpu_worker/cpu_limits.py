"""How many cores and how much memory may this process use?

Cgroups limit both, in either version: a process is in one cgroup per controller (version 1) or in one for all (version
2), and the limits of those above it hold as well.
"""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Physical cores in this process's affinity, or fewer where a cgroup's quota gives less time; at least 1."""
    cores = {_core_of(cpu) for cpu in os.sched_getaffinity(0)}
    quotas = [_read_quota(folder) for folder in _own_cgroups("cpu")]
    return max(1, min([len(cores), *(math.floor(quota) for quota in quotas if quota is not None)]))


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, within the limits of the process's cgroups."""
    rooms = [_read_room(folder) for folder in _own_cgroups("memory")]
    return max(0, min([_system_available_bytes(), *(room for room in rooms if room is not None)]))


def _core_of(cpu: int) -> str:
    """A name that all hardware threads of a core share."""
    siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return _read(siblings) or str(cpu)


def _own_cgroups(controller: str) -> list[Path]:
    """The process's cgroups that may limit what a controller controls, and those above them."""
    folders = []
    for line in (_read(_MEMBERSHIP) or "").splitlines():
        # hierarchy:controllers:path, with no controllers named in version 2
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers == "" or controller in controllers.split(","):
            root = _CGROUPS / controllers
            own = root / path.lstrip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return folders


def _read_quota(folder: Path) -> float | None:
    """Cores' worth of time that a cgroup grants."""
    quota, period = (_read(folder / "cpu.max") or "max 0").split()
    if quota == "max":
        quota, period = _read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us") or "0"
    return int(quota) / int(period) if int(quota) > 0 else None


def _read_room(folder: Path) -> int | None:
    """Bytes left under a cgroup's memory limit; the page cache it holds counts as free."""
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit == "max":
        return None
    statistics = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    return int(limit) - int(used) + int(statistics.get("inactive_file", 0))


def _system_available_bytes() -> int:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
