"""How many cores and how much memory may this process use?"""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores in this process's affinity, or fewer where a cgroup's quota gives less time; at least 1."""
    cores = {_core_of(cpu) for cpu in os.sched_getaffinity(0)}
    quotas = [_read_quota(folder) for folder in _own_cgroups()]
    return max(1, min([len(cores), *(math.floor(quota) for quota in quotas if quota is not None)]))


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, within the limits of the process's cgroups."""
    rooms = [_read_room(folder) for folder in _own_cgroups()]
    return max(0, min([_system_available_bytes(), *(room for room in rooms if room is not None)]))


def _core_of(cpu: int) -> str:
    """A name that all hardware threads of a core share."""
    siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return _read(siblings) or str(cpu)


def _own_cgroups() -> list[Path]:
    """The process's cgroup (version 2) and those above it, whose limits hold as well."""
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        if line.startswith("0::"):
            own = _CGROUPS / line.removeprefix("0::").lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(_CGROUPS)]
    return []


def _read_quota(folder: Path) -> float | None:
    """Cores' worth of time that a cgroup grants."""
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _read_room(folder: Path) -> int | None:
    """Bytes left under a cgroup's memory limit; the page cache it holds counts as free."""
    limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
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
