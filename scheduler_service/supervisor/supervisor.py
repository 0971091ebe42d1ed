"""The watch over a service's processes: start all, restart what dies, give up when that is hopeless, end all."""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from scheduler_service.supervisor.child import Child, ChildSpec
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.output import Output
from scheduler_service.supervisor.probe import Probe
from scheduler_service.supervisor.restart_policy import RestartCounter, RestartPolicy
from scheduler_service.supervisor.stop import Stop
from scheduler_service.supervisor.tasks import cancel_all
from scheduler_service.supervisor.watchdog import Watchdog

logger = logging.getLogger(__name__)

_STARTING_POLL_S = 0.1
_READY_POLL_S = 1.0
# How a process ends that somebody else asked to stop.
_ASKED_TO_STOP = (0, -signal.SIGTERM, -signal.SIGINT)


Group = tuple[ChildSpec, ...]
"""Processes that live and die together."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the supervisor is: `drain_timeout_s` with open streams, `grace_s` with a process that was told
    to end, `heartbeat_timeout_s` with one that is silent."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    grace_s: float = 10.0
    drain_timeout_s: float = 30.0
    heartbeat_timeout_s: float = 5.0


class Supervisor:
    """Runs the processes of one service until told to stop.

    Args:
        specs: the processes.
        probe: asks the first gateway about the engine.
        output: where the processes' lines and the start's progress go.
        on_ready: called once, with the gateways' addresses for gRPC and for HTTP, when the service first can take
            requests.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        probe: Probe,
        output: Output,
        on_ready: Callable[[list[str], list[str]], None],
        timing: Timing,
    ) -> None:
        self._specs = specs
        self._probe = probe
        self._output = output
        self._on_ready = on_ready
        self._timing = timing
        self._children: dict[str, Child] = {}
        self._watchdog = Watchdog(self._last_starts, self._history, timing.heartbeat_timeout_s)
        self._was_ready = False
        self._num_starts: Counter[str] = Counter()
        self._given_up: dict[str, str] = {}

    async def run(self, stop: Stop) -> None:
        """Run until told to stop; all processes are gone on return.

        Raises:
            ServiceError: a process failed for good.
        """
        self._output.progress("starting processes", 0, 0)
        watching = asyncio.create_task(self._watchdog.run())
        watchers = [asyncio.create_task(stop.wait()), asyncio.create_task(self._watch_engine())]
        keepers = {group: asyncio.create_task(self._keep_running(group)) for group in _groups(self._specs)}
        try:
            done, _ = await asyncio.wait([watching, *watchers, *keepers.values()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._output.end_progress(is_done=False)
            self._prepare_stop(is_quick=stop.is_quick or not stop.is_set)
            await cancel_all([*watchers, *(keeper for group, keeper in keepers.items() if group[0].stops_first)])
            await cancel_all(keepers.values())
            await cancel_all([watching])
        for task in done:
            task.result()
        if self._given_up:
            raise ServiceError("; ".join(dict.fromkeys(self._given_up.values())))

    def kill(self) -> None:
        """SIGKILL to every process: for someone who asks a second time."""
        for child in self._children.values():
            child.kill()

    async def _keep_running(self, group: Group) -> None:
        counter = RestartCounter(self._timing.restart)
        is_first = True
        while True:
            child, status = await self._run_group(group)
            name, how = child.spec.name, child.end
            if is_first and status not in _ASKED_TO_STOP and not self._was_ready:
                said = child.last_line if status > 0 else f"{how}, after saying {child.last_line!r}"
                raise ServiceError(f"{name} cannot start: {said or how}")
            delay_s = counter.next_delay_s(self._watchdog.has_worked(child, self._timing.restart.min_uptime_s))
            if delay_s is None:
                await self._give_up(group, child, counter.num_failures)
            logger.warning("child died name=%s how=%r restart_in_s=%.1f", name, how, delay_s)
            is_first = False
            await asyncio.sleep(delay_s)

    async def _give_up(self, group: Group, child: Child, num_failures: int) -> NoReturn:
        """Leave a group dead: as long as a gateway lives, callers learn from it why nothing can run. Never returns.

        Raises:
            ServiceError: there is no gateway any more.
        """
        detail = (
            f"{child.spec.name} failed {num_failures} times in a row, the last time with {child.end}: "
            f"{child.last_line or 'it said nothing'}"
        )
        logger.error("child given up detail=%r", detail)
        self._given_up |= {spec.name: detail for spec in group}
        if all(spec.name in self._given_up for spec in self._specs if spec.stops_first):
            raise ServiceError(detail)
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody ends this wait")

    async def _run_group(self, group: Group) -> tuple[Child, int]:
        """Run processes until one ends, and end the others at once: who ended first, and its exit status."""
        runs: dict[asyncio.Task[int], Child] = {}
        for spec in group:
            child = self._children[spec.name] = Child(spec, self._output.line, self._timing.grace_s)
            self._num_starts[spec.name] += 1
            runs[asyncio.create_task(child.run())] = child
        try:
            done, others = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await cancel_all(runs)
            raise
        for run in others:
            runs[run].kill()
        await asyncio.gather(*others)
        first = next(run for run in runs if run in done)
        return runs[first], first.result()

    def _prepare_stop(self, is_quick: bool) -> None:
        """Tell those who serve callers, once they are ended, to cut open streams or to wait for them."""
        for child in self._last_starts():
            if child.spec.stops_first and is_quick:
                child.stop_signal = signal.SIGINT
            elif child.spec.stops_first:
                child.grace_s += self._timing.drain_timeout_s

    def _last_starts(self) -> list[Child]:
        return [self._children[spec.name] for spec in self._specs if spec.name in self._children]

    def _history(self, child: Child) -> tuple[int, str]:
        """Restarts of this process so far, and why it was given up, if it was."""
        name = child.spec.name
        return self._num_starts[name] - 1, self._given_up.get(name, "")

    async def _watch_engine(self) -> None:
        was_ready = False
        while True:
            is_ready = self._gateways_announced() and await self._is_engine_ready()
            if is_ready != was_ready:
                self._note_change(is_ready)
                was_ready = is_ready
            await asyncio.sleep(_READY_POLL_S if is_ready else _STARTING_POLL_S)

    async def _is_engine_ready(self) -> bool:
        report = await self._probe.ask()
        if report is not None and not report.is_ready and not self._was_ready:
            self._output.progress(report.stage, report.done, report.total)
        return report is not None and report.is_ready

    def _note_change(self, is_ready: bool) -> None:
        if not is_ready:
            logger.warning("service not ready")
            return
        logger.info("service ready")
        self._output.end_progress(is_done=True)
        if not self._was_ready:
            self._was_ready = True
            self._on_ready(self._addresses(), [a for c in self._children.values() for a in c.http_addresses])

    def _gateways_announced(self) -> bool:
        return len(self._children) == len(self._specs) and all(c.has_announced for c in self._children.values())

    def _addresses(self) -> list[str]:
        """Public addresses, or the private sockets, which gateways announce first, of a service that has none."""
        found = [address for child in self._children.values() for address in child.addresses[1:] or child.addresses]
        return list(dict.fromkeys(found))


def _groups(specs: Sequence[ChildSpec]) -> list[Group]:
    """The processes by group, in order."""
    groups: dict[str, Group] = {}
    for spec in specs:
        key = spec.group or spec.name
        groups[key] = (*groups.get(key, ()), spec)
    return list(groups.values())
