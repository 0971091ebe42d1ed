"""What do a process and its supervisor tell each other? Short JSON messages on a socket that the process inherits.

    process -> supervisor   Beat: four times a second, from a thread that does nothing else
    supervisor -> gateway   ServiceReport: when a process changes its state, and once a second

They are JSON because the supervisor runs without the packages of the other messages. A process that nobody supervises
has no socket, and works the same.
"""

import dataclasses
import enum
import json
import signal
import socket
import threading
import time
from dataclasses import dataclass

BEAT_PERIOD_S = 0.25
_MAX_MESSAGE_BYTES = 1 << 16


class ProcessState(enum.StrEnum):
    """What a process does. It says the first four itself; HUNG and DEAD are others' findings."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    HUNG = "hung"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Beat:
    """A process is alive. Its main thread made its last progress `quiet_s` seconds ago, with what `doing` names.

    `num_steps` counts steps that ended since the process started, `step_age_s` is the time since the last of them.
    """

    state: ProcessState
    doing: str
    quiet_s: float
    incarnation: str
    num_steps: int
    step_age_s: float | None


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One process as the supervisor sees it. `detail` says what it does, or why it is HUNG or DEAD.

    `num_restarts` counts its starts after the first. `is_given_up`: it will not be started again.
    """

    name: str
    state: ProcessState
    detail: str
    pid: int
    incarnation: str
    num_restarts: int
    num_steps: int
    step_age_s: float | None
    is_given_up: bool = False
    is_gateway: bool = False


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """All processes of the service."""

    processes: tuple[ProcessReport, ...]


def encode(message: Beat | ServiceReport) -> bytes:
    """One message as bytes."""
    return json.dumps(dataclasses.asdict(message)).encode()


def decode_beat(data: bytes) -> Beat:
    """Take a process's word.

    Raises:
        ValueError: it is none.
    """
    fields = json.loads(data)
    try:
        return Beat(**{**fields, "state": ProcessState(fields["state"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no heartbeat: {error}") from error


def decode_report(data: bytes) -> ServiceReport:
    """Take the supervisor's word.

    Raises:
        ValueError: it is none.
    """
    try:
        processes = json.loads(data)["processes"]
        return ServiceReport(tuple(ProcessReport(**{**p, "state": ProcessState(p["state"])}) for p in processes))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no service report: {error}") from error


class Heart:
    """Beats for this process, from `start` on. `note` is for the main thread alone, and costs next to nothing.

    Args:
        fd: the inherited socket; None: nobody listens, and there is no thread.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.incarnation = ""
        self._socket = socket.socket(fileno=fd) if fd is not None else None
        self._now = (ProcessState.STARTING, "", time.monotonic())
        self._last_step = (0, 0.0)

    @property
    def is_supervised(self) -> bool:
        """Whether there is somebody to listen."""
        return self._socket is not None

    def start(self) -> None:
        """Begin to beat."""
        if self._socket is not None:
            threading.Thread(target=self._beat, args=(self._socket,), name="heart", daemon=True).start()

    def note(self, state: ProcessState, doing: str = "") -> None:
        """The main thread has made progress, and now does this."""
        self._now = (state, doing, time.monotonic())

    def note_step(self) -> None:
        """A step has ended."""
        self._last_step = (self._last_step[0] + 1, time.monotonic())

    def fileno(self) -> int:
        """The socket, to wait for reports."""
        assert self._socket is not None
        return self._socket.fileno()

    def receive(self) -> ServiceReport | None:
        """The supervisor's next report, None if there is none now.

        Raises:
            ConnectionError: the supervisor is gone.
            ValueError: what came is no report.
        """
        assert self._socket is not None
        try:
            data = self._socket.recv(_MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError("the supervisor closed the socket")
        return decode_report(data)

    def _beat(self, to_supervisor: socket.socket) -> None:
        # Signals are the main thread's, whose waiting they end.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                to_supervisor.send(encode(self._make_beat()), socket.MSG_DONTWAIT)
            except BlockingIOError:
                # The supervisor is behind; the beats that it has not read yet say the same.
                pass
            except OSError:
                return
            time.sleep(BEAT_PERIOD_S)

    def _make_beat(self) -> Beat:
        now_s = time.monotonic()
        state, doing, since_s = self._now
        num_steps, step_s = self._last_step
        step_age_s = round(now_s - step_s, 3) if num_steps else None
        return Beat(state, doing, round(now_s - since_s, 3), self.incarnation, num_steps, step_age_s)


NO_HEART = Heart()
