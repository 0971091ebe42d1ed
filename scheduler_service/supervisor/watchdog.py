"""Which processes hang, and how are all of them? Looks several times a second, kills what hangs, tells the gateways."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from pagewire.ipc.supervision import ProcessReport, ProcessState, ServiceReport, decode_beat, encode
from scheduler_service.supervisor.child import Child
from scheduler_service.supervisor.pulse import Limits, Pulse

logger = logging.getLogger(__name__)

_REPORT_PERIOD_S = 1.0
_MAX_TICK_S = 0.25
_TICKS_PER_LIMIT = 20
# While the supervisor itself gets no CPU, or is stopped, the others' time does not run.
_MOST_TICKS_AT_ONCE = 4


class Watchdog:
    """Judges the children.

    Args:
        children: gives the last start of each process, in order.
        history: gives the number of restarts of a process, and why it was given up, empty if it was not.
        heartbeat_timeout_s: a process that is silent for longer, and does not run, hangs.
    """

    def __init__(
        self,
        children: Callable[[], Iterable[Child]],
        history: Callable[[Child], tuple[int, str]],
        heartbeat_timeout_s: float,
    ) -> None:
        self._children = children
        self._history = history
        self._timeout_s = heartbeat_timeout_s
        self._pulses: WeakKeyDictionary[Child, Pulse] = WeakKeyDictionary()
        self._hangs: WeakKeyDictionary[Child, str] = WeakKeyDictionary()
        self._clock_s = 0.0
        self._told: list[object] = []
        self._told_s = float("-inf")

    async def run(self) -> None:
        """Look until cancelled."""
        tick_s = min(_MAX_TICK_S, self._timeout_s / _TICKS_PER_LIMIT)
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(tick_s)
            now_s = time.monotonic()
            self._clock_s += min(now_s - last_s, _MOST_TICKS_AT_ONCE * tick_s)
            last_s = now_s
            for child in self._children():
                self._look_at(child)
            self._tell(now_s)
            # The gateways hear of a hang before the process is gone, and its connections with it.
            for child in self._children():
                if child in self._hangs and child.is_running:
                    child.kill_hung(self._hangs[child])

    def has_worked(self, child: Child, min_uptime_s: float) -> bool:
        """Whether this start was of use: it did a step, or was ready for so long."""
        pulse = self._pulses.get(child)
        return pulse is not None and pulse.has_worked(min_uptime_s)

    def report(self) -> ServiceReport:
        """All processes as they are now."""
        return ServiceReport(tuple(self._report(child) for child in self._children()))

    def _look_at(self, child: Child) -> None:
        max_quiet_s = child.spec.max_quiet_s
        if max_quiet_s is None or not child.is_running or child in self._hangs:
            return
        pulse = self._pulses.get(child)
        if pulse is None:
            pulse = self._pulses[child] = Pulse(Limits(self._timeout_s, max_quiet_s), self._clock_s)
        for message in child.receive():
            try:
                pulse.take(decode_beat(message), self._clock_s)
            except ValueError as error:
                logger.warning("message dropped name=%s error=%s", child.spec.name, error)
        why = pulse.why_hung(child.pid, self._clock_s)
        if why is not None:
            logger.error("child hangs, killing it name=%s pid=%d why=%r", child.spec.name, child.pid, why)
            self._hangs[child] = why

    def _tell(self, now_s: float) -> None:
        """Send a report to those who serve callers, if it is time or a process has changed its state."""
        report = self.report()
        states: list[object] = [(process.name, process.pid, process.state) for process in report.processes]
        if states != self._told or now_s - self._told_s >= _REPORT_PERIOD_S:
            self._told, self._told_s = states, now_s
            message = encode(report)
            for child in self._children():
                if child.spec.stops_first and child.is_running:
                    child.send(message)

    def _report(self, child: Child) -> ProcessReport:
        num_restarts, given_up = self._history(child)
        pulse = self._pulses.get(child)
        beat = pulse.beat if pulse is not None else None
        if given_up or child.end:
            state, detail = ProcessState.DEAD, given_up or child.end
        elif child in self._hangs:
            state, detail = ProcessState.HUNG, self._hangs[child]
        elif beat is None:
            state, detail = ProcessState.STARTING, ""
        else:
            state, detail = beat.state, beat.doing
        return ProcessReport(
            name=child.spec.name,
            state=state,
            detail=detail,
            pid=child.pid,
            incarnation=beat.incarnation if beat is not None else "",
            num_restarts=num_restarts,
            num_steps=beat.num_steps if beat is not None else 0,
            step_age_s=beat.step_age_s if beat is not None else None,
            is_given_up=bool(given_up),
            is_gateway=child.spec.stops_first,
        )
