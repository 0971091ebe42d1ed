"""How do processes that live and die together run, with nobody here who starts them again?"""

import asyncio
from collections.abc import Callable, Sequence

from pagewire.ipc.supervision import ProcessState
from scheduler_service.supervisor.child import Child, ChildSpec
from scheduler_service.supervisor.container.health import Health
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.tasks import cancel_all
from scheduler_service.supervisor.watchdog import Watchdog

_POLL_S = 0.1
_READY = (ProcessState.IDLE, ProcessState.BUSY)
_LOST = (ProcessState.HUNG, ProcessState.DEAD)


async def run_until_one_ends(
    specs: Sequence[ChildSpec],
    health_address: str,
    stop: asyncio.Event,
    write_line: Callable[[str, str], None],
    heartbeat_timeout_s: float,
    grace_s: float,
) -> None:
    """Run processes until told to stop; all are gone on return, however it comes about.

    From the word to stop on, probes hear that the processes are not ready, while these finish what they do; one that
    hangs meanwhile is killed.

    Args:
        specs: the processes; they send heartbeats.
        health_address: where probes ask, HOST:PORT.
        stop: ends all.
        write_line: takes a process's name and a line that it wrote to standard error.
        heartbeat_timeout_s: a process that is silent for longer, and does not run, hangs.
        grace_s: time between SIGTERM and SIGKILL.

    Raises:
        ServiceError: a process ended by itself, or hung, or the health address cannot be used.
    """
    children = [Child(spec, write_line, grace_s) for spec in specs]
    watchdog = Watchdog(lambda: children, lambda _child: (0, ""), heartbeat_timeout_s)
    async with Health(health_address) as health:
        runs = {asyncio.create_task(child.run()): child for child in children}
        others = [asyncio.create_task(task) for task in (watchdog.run(), _tell(watchdog, health, stop))]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, *runs, *others], return_when=asyncio.FIRST_COMPLETED)
            ended = next((child for run, child in runs.items() if run.done()), None)
            if ended is not None and not stop.is_set():
                for child in children:
                    child.kill()
        finally:
            await cancel_all([stopping, *runs])
            await cancel_all(others)
    if ended is not None and not stop.is_set():
        raise ServiceError(f"{ended.spec.name} ended with {ended.end}: {ended.last_line or 'it said nothing'}")


async def _tell(watchdog: Watchdog, health: Health, stop: asyncio.Event) -> None:
    while True:
        states = {process.state for process in watchdog.report().processes}
        is_ready = states.issubset(_READY) and not stop.is_set()
        await health.set(is_ready=is_ready, is_live=states.isdisjoint(_LOST))
        await asyncio.sleep(_POLL_S)
