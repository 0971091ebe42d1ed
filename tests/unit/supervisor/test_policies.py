"""Restart policy, run directory and check of packages: do the small rules hold?"""

import stat
import tempfile
from pathlib import Path

import pytest

from scheduler_service.supervisor import preflight
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.restart_policy import RestartCounter, RestartPolicy
from scheduler_service.supervisor.run_dir import private_run_dir


def test_restarts_wait_longer_and_longer_and_end():
    counter = RestartCounter(RestartPolicy(initial_backoff_s=1.0, max_backoff_s=5.0, max_restarts=4))
    assert [counter.next_delay_s(worked=False) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, None]


def test_a_start_that_worked_forgives_earlier_failures():
    counter = RestartCounter(RestartPolicy(initial_backoff_s=1.0, max_restarts=2))
    for _ in range(5):
        assert counter.next_delay_s(worked=False) == 1.0
        assert counter.next_delay_s(worked=False) == 2.0
        assert counter.next_delay_s(worked=True) == 1.0


def test_run_dir_is_private_and_removed():
    # Not below tmp_path, which may be too long for sockets.
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        with private_run_dir(Path(parent) / "new") as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            (path / "a.sock").touch()
        assert list((Path(parent) / "new").iterdir()) == []


def test_run_dir_too_long_for_sockets_is_refused_and_not_made(tmp_path):
    with pytest.raises(ServiceError, match="too long"), private_run_dir(tmp_path / ("x" * 100)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_run_dir_of_a_supervisor_that_is_gone_is_removed(short_path):
    stale, unlocked = short_path / "pagewire-stale123", short_path / "pagewire-other123"
    stale.mkdir()
    (stale / "lock").touch()
    (stale / "gateway-0.sock").touch()
    unlocked.mkdir()
    elsewhere = short_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (short_path / "pagewire-link1234").symlink_to(elsewhere)
    with private_run_dir(short_path) as living:
        assert not stale.exists()
        with private_run_dir(short_path):
            assert living.is_dir()
        assert living.is_dir()
    assert not living.exists()
    assert unlocked.is_dir()
    assert (elsewhere / "lock").exists()


def test_run_dir_in_a_long_temporary_directory_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    with private_run_dir(None) as path:
        assert str(path).startswith("/tmp/pagewire-")


def test_run_dir_that_cannot_be_made_is_one_clear_line(short_path):
    (short_path / "file").touch()
    with (
        pytest.raises(ServiceError, match=r"cannot make a run directory in .*file"),
        private_run_dir(short_path / "file"),
    ):
        pass


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(preflight, "_NEEDED_MODULES", ("zmq", "no_such_module"))
    with pytest.raises(ServiceError, match=r"no_such_module are not installed: pip install 'pagewire\[all\]'"):
        preflight.check_packages()
