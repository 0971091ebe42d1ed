"""Does a process count as hung exactly if it is stopped, deadlocked or too long at one thing? Real processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from pagewire.ipc.supervision import Beat, ProcessState
from scheduler_service.supervisor.pulse import Limits, Pulse
from tests.fakes.patience import PATIENCE_S

LIMITS = Limits(heartbeat_timeout_s=1.0, max_quiet_s=60.0)
# One call that holds the interpreter's lock: no other thread of the process runs meanwhile.
LOCKED = "print(flush=True); 10 ** 100_000_000"
SLEEPING = "import time; print(flush=True); time.sleep(1000)"


class Watched:
    """A process without heartbeats, and its pulse by the real clock."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.started_s = time.monotonic()
        self.pulse = Pulse(LIMITS, self.started_s)

    def watch(self, limit_s: float) -> str | None:
        """Look as often as the watchdog does until it hangs, for so long at most."""
        while time.monotonic() < self.started_s + limit_s:
            why = self.pulse.why_hung(self.process.pid, time.monotonic())
            if why is not None:
                return why
            time.sleep(0.05)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def watch() -> Iterator[type[Watched]]:
    started: list[Watched] = []

    class Kept(Watched):
        def __init__(self, program: str) -> None:
            super().__init__(program)
            started.append(self)

    yield Kept
    for watched in started:
        watched.end()


def test_a_process_that_sleeps_without_heartbeats_hangs(watch):
    assert str(watch(SLEEPING).watch(PATIENCE_S)).startswith("no heartbeat for ")


def test_a_process_that_computes_with_the_interpreter_locked_does_not_hang(watch):
    assert watch(LOCKED).watch(2.5) is None


def test_a_stopped_process_hangs_whatever_it_did(watch):
    watched = watch(LOCKED)
    assert watched.watch(1.5) is None
    watched.process.send_signal(signal.SIGSTOP)
    assert watched.watch(PATIENCE_S) is not None
    assert psutil.Process(watched.process.pid).status() == psutil.STATUS_STOPPED


def beat(state: ProcessState, quiet_s: float = 0.0, num_steps: int = 0) -> Beat:
    return Beat(state, "step 7", quiet_s, "", num_steps, None)


@pytest.mark.parametrize(
    ("state", "quiet_s", "is_hung"),
    [
        (ProcessState.BUSY, 59.0, False),
        (ProcessState.BUSY, 61.0, True),
        (ProcessState.IDLE, 61.0, True),
        (ProcessState.STARTING, 61.0, False),
        (ProcessState.STARTING, 1801.0, True),
    ],
)
def test_a_main_thread_may_be_quiet_up_to_its_limit(watch, state, quiet_s, is_hung):
    pulse = Pulse(LIMITS, 0.0)
    pulse.take(beat(state, quiet_s), 10.0)
    why = pulse.why_hung(watch(SLEEPING).process.pid, 10.0)
    assert (why is not None) == is_hung
    assert not is_hung or str(why).endswith("with step 7")


def test_a_heartbeat_begins_the_silence_anew(watch):
    process = watch(SLEEPING).process
    pid = process.pid
    # It sleeps soon, but a process that is stopped runs for nothing in the world.
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        pass
    pulse = Pulse(LIMITS, 0.0)
    pulse.take(beat(ProcessState.IDLE, 0.0), 5.0)
    assert pulse.why_hung(pid, 5.8) is None
    pulse.take(beat(ProcessState.IDLE, 0.0), 5.8)
    assert pulse.why_hung(pid, 6.6) is None
    assert pulse.why_hung(pid, 6.8) == "no heartbeat for 1.0 s"


def test_a_start_has_worked_after_one_step():
    pulse = Pulse(LIMITS, 0.0)
    pulse.take(beat(ProcessState.STARTING), 60.0)
    pulse.take(beat(ProcessState.BUSY), 60.2)
    assert not pulse.has_worked(5.0)
    pulse.take(beat(ProcessState.BUSY, num_steps=1), 60.4)
    assert pulse.has_worked(5.0)


def test_a_start_has_worked_when_it_was_ready_for_long_enough():
    pulse = Pulse(LIMITS, 0.0)
    assert not pulse.has_worked(0.0)
    for now_s, state in ((60.0, ProcessState.STARTING), (61.0, ProcessState.IDLE), (65.9, ProcessState.STARTING)):
        pulse.take(beat(state), now_s)
        assert not pulse.has_worked(5.0)
    pulse.take(beat(ProcessState.DRAINING), 66.0)
    assert pulse.has_worked(5.0)
