"""Cores and memory as affinity and cgroups allow them, read from a made-up system."""

from pathlib import Path

import pytest

from gpu_worker import cpu_limits
from gpu_worker.cpu_limits import available_memory_bytes, usable_cores


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two hardware threads each, in no cgroup with limits."""
    for cpu in range(8):
        topology = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cpu_limits, "_CPUS", tmp_path / "cpus")
    monkeypatch.setattr(cpu_limits, "_CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(cpu_limits.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cpu_limits, "_own_cgroups", lambda: [tmp_path / "cgroups" / "a" / "b", tmp_path / "cgroups"])
    (tmp_path / "cgroups" / "a" / "b").mkdir(parents=True)
    return tmp_path


def test_usable_cores_counts_a_core_once(system: Path) -> None:
    assert usable_cores() == 4


def test_usable_cores_obeys_the_affinity(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_limits.os, "sched_getaffinity", lambda pid: {1, 5, 2})
    assert usable_cores() == 2


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_usable_cores_obeys_a_quota_of_any_cgroup(system: Path, quota: str, cores: int) -> None:
    (system / "cgroups" / "cpu.max").write_text(quota + "\n")
    assert usable_cores() == cores


def test_usable_cores_without_topology_counts_cpus(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_limits, "_CPUS", system / "nothing")
    assert usable_cores() == 8


def test_available_memory_is_what_the_tightest_limit_leaves(system: Path) -> None:
    folder = system / "cgroups" / "a" / "b"
    unlimited = available_memory_bytes()
    assert unlimited > 0
    (folder / "memory.max").write_text("5000\n")
    (folder / "memory.current").write_text("4000\n")
    (folder / "memory.stat").write_text("anon 3000\ninactive_file 500\n")
    assert available_memory_bytes() == 1500
    (folder / "memory.max").write_text("max\n")
    assert available_memory_bytes() > 1500
