"""Does the supervisor start, restart and end real processes, whatever happens to them or to itself?"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pagewire_client import Client
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import left_of

ROOT = Path(__file__).parents[2]


class Service:
    """A supervisor process over fake children, or as a person starts it if `children` is None."""

    def __init__(
        self,
        folder: Path,
        run_dir: Path,
        children: list[list[str]] | None,
        *flags: str,
        stderr: int | None = None,
        **environment: str,
    ) -> None:
        self.folder = folder
        self.stages: list[str] = []
        self.run_dir = run_dir
        self._read_fd, event_fd = os.pipe()
        module = ["scheduler_service.supervisor"] if children is None else ["tests.fakes.supervised"]
        command = [sys.executable, "-m", *module, *([] if children is None else [json.dumps(children)])]
        command += ["--run-dir", str(self.run_dir), *flags]
        command += [] if children is None else ["--event-fd", str(event_fd)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            pass_fds=[event_fd],
            stderr=(folder / "stderr").open("w") if stderr is None else stderr,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        )
        os.close(event_fd)
        self._events = os.fdopen(self._read_fd)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def next_event(self) -> dict:
        """The next line of the event pipe that begins no stage; empty once the supervisor is gone."""
        while (event := json.loads(self._events.readline() or "{}")).get("event") == "stage":
            self.stages.append(event["stage"])
        return event

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def abandon(self) -> None:
        """Close the event pipe, as the death of the program that started the supervisor does."""
        self._events.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if not self._events.closed:
            self._events.close()
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.fixture
def start(tmp_path):
    """Give a function that starts a supervisor; whatever is left of it dies at the end."""
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    services = []

    def start_service(children, *flags, **options):
        services.append(Service(tmp_path, Path(run_dir), children, "--model", str(model), *flags, **options))
        return services[-1]

    # tmp_path may be too long for sockets.
    with tempfile.TemporaryDirectory(dir="/tmp") as run_dir:
        yield start_service
        for service in services:
            service.close()


def pids(path: Path, count: int = 1) -> list[int]:
    """Pids of all starts of a fake child, once there are that many."""
    wait_for(lambda: path.exists() and len(path.read_text().split()) >= count)
    return [int(pid) for pid in path.read_text().split()]


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def suspend(process: psutil.Process) -> None:
    """SIGSTOP; waits until it holds, as signals that come before that are handled first."""
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)


def is_told_to_end(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that is suspended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def test_ready_event_tells_where_requests_go(start):
    service = start([], "--listen", "127.0.0.1:0", "--model-name", "tiny")
    event = service.next_event()
    assert (event["event"], event["model"]) == ("ready", "tiny")
    with Client(event["addresses"][0]) as client:
        assert client.generate("x").text == "t0 t1 t2 "


def test_without_an_address_a_private_socket_is_served(start):
    service = start([])
    (address,) = service.next_event()["addresses"]
    assert address.startswith(f"unix:{service.run_dir}/")
    assert Path(address.removeprefix("unix:")).parent.stat().st_mode & 0o777 == 0o700
    with Client(address) as client:
        assert client.generate("x").text == "t0 t1 t2 "


def test_the_stages_of_the_start_are_told_once_each_shown_or_not(start):
    service = start([], "--no-progress")
    service.next_event()
    assert service.stages == ["starting processes", "loading weights"]
    assert "starting" not in service.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_everything_with_status_0(start, tmp_path, number):
    service = start([["--pids", str(tmp_path / "a")], ["--pids", str(tmp_path / "b")]])
    service.next_event()
    processes = service.processes()
    assert len(processes) == 3
    service.process.send_signal(number)
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert left_of(processes, limit_s=0) == []
    assert list(service.run_dir.iterdir()) == []


def test_a_stop_signal_during_the_start_ends_everything(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a")]])
    (pid,) = pids(tmp_path / "a")
    processes = [*service.processes(), psutil.Process(pid)]
    service.process.terminate()
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert left_of(processes, limit_s=0) == []


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--ignore-sigterm"]], "--grace-s", "0.3")
    service.next_event()
    pids(tmp_path / "a")
    processes = service.processes()
    service.process.terminate()
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert left_of(processes, limit_s=0) == []
    assert "ignores SIGTERM" in service.stderr


def test_gateways_end_before_what_they_depend_on(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a")]], "--grace-s", str(PATIENCE_S))
    service.next_event()
    gateway, child = sorted(service.processes(), key=lambda process: process.pid in pids(tmp_path / "a"))
    suspend(gateway)
    suspend(child)
    service.process.terminate()
    wait_for(lambda: is_told_to_end(gateway))
    assert not is_told_to_end(child)
    gateway.resume()
    wait_for(lambda: is_told_to_end(child))
    assert left_of([gateway], limit_s=0) == []
    child.resume()
    assert service.process.wait(timeout=PATIENCE_S) == 0


def test_a_second_stop_signal_kills_at_once(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--ignore-sigterm"]], "--grace-s", str(4 * PATIENCE_S))
    service.next_event()
    pids(tmp_path / "a")
    service.process.terminate()
    wait_for(lambda: len(service.processes()) == 1)
    service.process.terminate()
    assert service.process.wait(timeout=PATIENCE_S) == 0


def test_no_child_survives_a_killed_supervisor(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--ignore-sigterm"], ["--pids", str(tmp_path / "b")]])
    service.next_event()
    processes = service.processes()
    assert len(processes) == 3
    service.process.kill()
    assert left_of(processes) == []


def test_the_service_ends_with_the_program_that_started_it(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a")]])
    service.next_event()
    processes = service.processes()
    service.abandon()
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert left_of(processes, limit_s=0) == []


def test_a_killed_child_is_started_again(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a")]])
    service.next_event()
    (first,) = pids(tmp_path / "a")
    os.kill(first, signal.SIGKILL)
    second = pids(tmp_path / "a", count=2)[1]
    assert psutil.pid_exists(second)
    assert service.process.poll() is None
    wait_for(lambda: "child died name=child-0" in service.stderr)


def test_processes_of_a_group_die_and_start_again_together(start, tmp_path):
    members = [["group a", "--pids", str(tmp_path / name), "--ignore-sigterm"] for name in "abc"]
    service = start([*members, ["--pids", str(tmp_path / "other")]])
    service.next_event()
    first = [psutil.Process(pids(tmp_path / name)[0]) for name in "abc"]
    first[1].kill()
    assert left_of(first) == []
    for name in "abc":
        assert psutil.pid_exists(pids(tmp_path / name, count=2)[1])
    assert len(pids(tmp_path / "other")) == 1
    assert service.process.poll() is None
    wait_for(lambda: "child died name=child-1 how='signal 9'" in service.stderr)


def test_a_group_whose_member_cannot_start_ends_the_service_with_that_members_line(start, tmp_path):
    group = [["group a", "--pids", str(tmp_path / "a")], ["group a", "--pids", str(tmp_path / "b"), "--fail", "no GPU"]]
    service = start(group)
    assert service.next_event() == {"event": "failed", "detail": "child-1 cannot start: no GPU"}
    assert service.process.wait(timeout=PATIENCE_S) == 1
    assert list(service.run_dir.iterdir()) == []


def test_a_killed_gateway_is_started_again(start):
    service = start([], "--listen", "127.0.0.1:0")
    service.next_event()
    (gateway,) = service.processes()
    gateway.kill()
    wait_for(lambda: [p.pid for p in service.processes()] not in ([], [gateway.pid]))
    wait_for(lambda: service.stderr.count("service ready") == 2)
    assert service.process.poll() is None


def test_a_failure_at_the_first_start_ends_the_service_with_its_last_line(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--fail", "weights.gguf is truncated: fetch it again"]])
    event = service.next_event()
    assert event == {"event": "failed", "detail": "child-0 cannot start: weights.gguf is truncated: fetch it again"}
    assert service.process.wait(timeout=PATIENCE_S) == 1
    assert f"pagewire: {event['detail']}" not in service.stderr
    assert len(pids(tmp_path / "a")) == 1
    assert list(service.run_dir.iterdir()) == []


def test_a_crash_at_the_first_start_ends_the_service(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--die-by", str(int(signal.SIGABRT))]])
    assert service.next_event() == {
        "event": "failed",
        "detail": "child-0 cannot start: signal 6, after saying 'start 1'",
    }
    assert service.process.wait(timeout=PATIENCE_S) == 1
    assert len(pids(tmp_path / "a")) == 1


def test_the_directory_of_a_killed_supervisor_goes_with_the_next_start(start):
    first = start([])
    first.next_event()
    (left,) = first.run_dir.iterdir()
    first.process.kill()
    first.process.wait()
    assert left.is_dir()
    second = start([])
    second.next_event()
    assert left not in list(second.run_dir.iterdir())


def test_a_child_that_fails_again_and_again_is_given_up(start, tmp_path):
    service = start(
        [["--pids", str(tmp_path / "a"), "--fail", "out of memory", "--fail-after", "1"]], "--max-restarts", "2"
    )
    service.next_event()
    os.kill(pids(tmp_path / "a")[0], signal.SIGKILL)
    wait_for(lambda: "child given up" in service.stderr)
    assert service.process.poll() is None
    assert len(pids(tmp_path / "a")) == 3
    service.process.terminate()
    event = service.next_event()
    assert event["event"] == "failed"
    assert "child-0 failed 3 times in a row" in event["detail"]
    assert "out of memory" in event["detail"]
    assert service.process.wait(timeout=PATIENCE_S) == 1
    assert service.stderr.splitlines()[-1] == f"pagewire: {event['detail']}"


def test_lines_of_children_carry_their_name(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a")]])
    service.next_event()
    wait_for(lambda: "child-0    | start 1\n" in service.stderr)


def test_a_standard_error_that_nobody_reads_holds_nothing_up(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--num-lines", "20000"]], stderr=subprocess.PIPE)
    service.next_event()
    processes = service.processes()
    pids(tmp_path / "a")
    service.process.terminate()
    assert service.process.wait(timeout=PATIENCE_S) == 0
    assert left_of(processes, limit_s=0) == []


def test_a_closed_standard_error_holds_nothing_up(start, tmp_path):
    service = start([["--pids", str(tmp_path / "a"), "--num-lines", "2000"]], stderr=subprocess.PIPE)
    service.process.stderr.close()
    assert service.next_event()["event"] == "ready"
    pids(tmp_path / "a")
    service.process.terminate()
    assert service.process.wait(timeout=PATIENCE_S) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="becomes a user that the system does not know")
def test_a_user_without_a_home_is_told_in_one_line(tmp_path):
    program = (
        "import os, sys; os.environ.pop('HOME', None); os.environ.pop('XDG_CACHE_HOME', None);"
        "from scheduler_service.supervisor.__main__ import main; os.setuid(54321); sys.exit(main(['--model', 'demo']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (
        1,
        "pagewire: this user has no home directory for a cache: set XDG_CACHE_HOME to a directory\n",
    )


@pytest.mark.parametrize("grace", ["-1", "nan", "inf"])
def test_an_impossible_grace_is_refused(start, grace):
    service = start([], "--grace-s", grace)
    assert service.process.wait(timeout=PATIENCE_S) == 2
    assert "--grace-s: must be a number of seconds, 0 or more" in service.stderr


def test_progress_is_plain_lines_off_a_terminal(start):
    service = start([])
    service.next_event()
    wait_for(lambda: "loading weights: " in service.stderr)
    assert "\x1b" not in service.stderr


def test_a_local_model_is_served_without_a_cache(start, tmp_path):
    (tmp_path / "file").touch()
    service = start([], XDG_CACHE_HOME=str(tmp_path / "file"))
    assert service.next_event()["event"] == "ready"


def test_a_port_in_use_is_one_clear_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        service = start(None, "--listen", address)
        assert service.process.wait(timeout=PATIENCE_S) == 1
    assert service.stderr.splitlines() == [
        f"pagewire: cannot listen on {address}: Address already in use; "
        "stop the process that holds it or choose another port"
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/no/such/model.gguf", "there is no model at /no/such/model.gguf"),
        ("not a model", "'not a model' is no model"),
        ("org/name", "cannot fetch org/name from the Hub"),
    ],
)
def test_a_missing_model_is_one_clear_line(start, tmp_path, spec, message):
    service = start(None, "--model", spec, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert service.process.wait(timeout=PATIENCE_S) == 1
    (line,) = service.stderr.splitlines()
    assert line.startswith(f"pagewire: {message}")
