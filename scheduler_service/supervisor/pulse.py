"""Is a process idle, busy or hung? Judged from its heartbeats and, where these stop, from what the kernel says.

Two things can stop, and each has a limit of its own:

- The process. A thread of its own beats four times a second. Where beats stay away for `heartbeat_timeout_s`, and the
  kernel neither gave the process any CPU time meanwhile nor has it waiting for a CPU or a disk, it is stopped or
  deadlocked: hung. A process that starts up, computes in one long call that keeps the interpreter locked, or gets no
  CPU on a busy machine shows one of these, and is given until the second limit.
- Its main thread. Beats say how long that one has made no progress: for a worker since its oldest step began. That is
  a hang beyond `max_quiet_s`, which is chosen far above the longest honest wait.

Times are of the supervisor's own clock, which stands still while the supervisor itself does not run.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pagewire.ipc.supervision import BEAT_PERIOD_S, Beat, ProcessState

# Loading: the longest that one stage of it may take without a word.
_MAX_STARTING_QUIET_S = 1800.0
# A hang must be known and told to the gateways within the limit, not only looked for.
_SHARE_OF_LIMIT = 0.9
# As long as beats come on time the kernel need not be asked.
_LATE_S = 2 * BEAT_PERIOD_S
_CPU_TIME_FIELDS = slice(11, 13)
_WAITS_FOR_MACHINE = frozenset("RD")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a process may be silent, and its main thread without progress."""

    heartbeat_timeout_s: float
    max_quiet_s: float


class Pulse:
    """The signs of life of one start of one process.

    Args:
        now_s: when it was started.
    """

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.beat: Beat | None = None
        self._limits = limits
        self._beat_s = now_s
        self._alive_s = now_s
        self._ready_s: float | None = None
        self._cpu_time: int | None = None

    def take(self, beat: Beat, now_s: float) -> None:
        """It has sent a heartbeat."""
        self.beat, self._beat_s, self._alive_s, self._cpu_time = beat, now_s, now_s, None
        if self._ready_s is None and beat.state is not ProcessState.STARTING:
            self._ready_s = now_s

    def has_worked(self, min_uptime_s: float) -> bool:
        """Whether it has done a step, or went on for so long after it was first ready."""
        has_done_step = self.beat is not None and self.beat.num_steps > 0
        return has_done_step or (self._ready_s is not None and self._beat_s - self._ready_s >= min_uptime_s)

    def why_hung(self, pid: int, now_s: float) -> str | None:
        """What makes it count as hung, in words; None while it does not. To be asked several times a second."""
        if now_s - self._beat_s > _LATE_S and self._uses_machine(pid):
            self._alive_s = now_s
        silent_s = now_s - self._alive_s
        if silent_s >= _SHARE_OF_LIMIT * self._limits.heartbeat_timeout_s:
            return f"no heartbeat for {silent_s:.1f} s"
        is_starting = self.beat is None or self.beat.state is ProcessState.STARTING
        max_quiet_s = _MAX_STARTING_QUIET_S if is_starting else self._limits.max_quiet_s
        quiet_s = now_s - self._beat_s + (self.beat.quiet_s if self.beat is not None else 0.0)
        if quiet_s >= max_quiet_s:
            doing = self.beat.doing if self.beat is not None else "its start"
            return f"no progress for {quiet_s:.1f} s with {doing or 'its main loop'}"
        return None

    def _uses_machine(self, pid: int) -> bool:
        """Whether it had CPU time since this was asked last, or now waits for a CPU or a disk."""
        before, self._cpu_time = self._cpu_time, _cpu_time(pid)
        return (before is not None and self._cpu_time != before) or _has_thread_that_waits_for_machine(pid)


def _cpu_time(pid: int) -> int | None:
    """CPU time of all threads so far, in clock ticks."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    return sum(int(field) for field in fields[_CPU_TIME_FIELDS]) if fields else None


def _has_thread_that_waits_for_machine(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    states = (_stat_fields(Path(f"/proc/{pid}/task/{thread}/stat"))[:1] for thread in threads)
    return any(state and state[0] in _WAITS_FOR_MACHINE for state in states)


def _stat_fields(path: Path) -> list[str]:
    """The fields of a stat file from the state on, which follows a name in brackets; none if the thread is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
