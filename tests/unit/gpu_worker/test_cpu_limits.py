"""Cores and memory as affinity and cgroups allow them, read from a made-up system."""

from pathlib import Path

import pytest

from gpu_worker import cpu_limits
from gpu_worker.cpu_limits import available_memory_bytes, usable_cores

VERSION_1 = "5:memory:/a/b\n3:cpu,cpuacct:/a/b\n1:name=systemd:/x\n0::/\n"
VERSION_2 = "0::/a/b\n"


class System:
    """Four cores of two hardware threads each, in cgroups without limits."""

    def __init__(self, folder: Path) -> None:
        self.cgroups = folder / "cgroups"
        self.membership = folder / "membership"
        for cpu in range(8):
            self.write(folder / "cpus" / f"cpu{cpu}" / "topology" / "thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
        self.write(self.membership, VERSION_2)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    made_up = System(tmp_path)
    monkeypatch.setattr(cpu_limits, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(cpu_limits, "_CGROUPS", made_up.cgroups)
    monkeypatch.setattr(cpu_limits, "_MEMBERSHIP", made_up.membership)
    monkeypatch.setattr(cpu_limits.os, "sched_getaffinity", lambda pid: set(range(8)))
    return made_up


def test_usable_cores_counts_a_core_once(system: System) -> None:
    assert usable_cores() == 4


def test_usable_cores_obeys_the_affinity(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_limits.os, "sched_getaffinity", lambda pid: {1, 5, 2})
    assert usable_cores() == 2


def test_usable_cores_without_topology_counts_cpus(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_limits, "_CPUS", tmp_path / "nothing")
    assert usable_cores() == 8


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
@pytest.mark.parametrize("folder", ["", "a", "a/b"])
def test_usable_cores_obeys_a_quota_of_version_2(system: System, folder: str, quota: str, cores: int) -> None:
    system.write(system.cgroups / folder / "cpu.max", quota)
    assert usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("250000", 2), ("50000", 1)])
@pytest.mark.parametrize("folder", ["", "a", "a/b"])
def test_usable_cores_obeys_a_quota_of_version_1(system: System, folder: str, quota: str, cores: int) -> None:
    system.write(system.membership, VERSION_1)
    system.write(system.cgroups / "cpu,cpuacct" / folder / "cpu.cfs_quota_us", quota)
    system.write(system.cgroups / "cpu,cpuacct" / folder / "cpu.cfs_period_us", "100000")
    assert usable_cores() == cores


def test_available_memory_is_what_the_tightest_limit_of_version_2_leaves(system: System) -> None:
    folder = system.cgroups / "a" / "b"
    assert available_memory_bytes() > 5000
    system.write(folder / "memory.max", "5000")
    system.write(folder / "memory.current", "4000")
    system.write(folder / "memory.stat", "anon 3000\ninactive_file 500")
    assert available_memory_bytes() == 1500
    system.write(folder / "memory.max", "max")
    assert available_memory_bytes() > 5000


def test_available_memory_is_what_a_limit_of_version_1_leaves(system: System) -> None:
    system.write(system.membership, VERSION_1)
    folder = system.cgroups / "memory" / "a"
    system.write(folder / "memory.limit_in_bytes", "5000")
    system.write(folder / "memory.usage_in_bytes", "6000")
    assert available_memory_bytes() == 0
