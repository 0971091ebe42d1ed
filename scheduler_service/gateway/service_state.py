"""How is the service, as this gateway knows it? From the scheduler's word, the supervisor's, and its own calls.

The scheduler says whether the engine is ready, but of a worker that was killed or stopped it hears only from the
successor; the supervisor, where there is one, knows at once. Nothing here depends on its being there.
"""

from dataclasses import dataclass

from pagewire.ipc.requests import EngineState
from pagewire.ipc.supervision import ProcessReport, ProcessState, ServiceReport
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.exceptions import EngineUnavailableError
from scheduler_service.gateway.open_calls import OpenCalls

_SERVING = (ProcessState.IDLE, ProcessState.BUSY)
_LOST = (ProcessState.DEAD, ProcessState.HUNG)


@dataclass(frozen=True, slots=True)
class Finding:
    """One word about the service, and why it is so; a service that can take requests needs no reason."""

    state: ProcessState
    reason: str = ""

    @property
    def is_serving(self) -> bool:
        """Whether requests should be sent here."""
        return self.state in _SERVING


class ServiceState:
    """Puts together what is known. `report` is the supervisor's last word, None without one."""

    def __init__(self, engines: EnginePool, calls: OpenCalls) -> None:
        self.report: ServiceReport | None = None
        self._engines = engines
        self._calls = calls

    def find(self) -> Finding:
        """The state of the service now."""
        if self._calls.is_draining:
            return Finding(ProcessState.DRAINING, f"the gateway is shutting down, open calls: {self._calls.num_open}")
        return self.find_engine()

    def find_engine(self) -> Finding:
        """The state of scheduler and workers now."""
        process = self._hindrance()
        if process is not None:
            reason = f"{process.name} is {process.state}{f': {process.detail}' if process.detail else ''}"
            return Finding(process.state, reason)
        status = self._engines.status
        if status.state is EngineState.UNAVAILABLE:
            return Finding(ProcessState.HUNG if self._engines.is_silent else ProcessState.DEAD, status.detail)
        if status.state is EngineState.STARTING:
            return Finding(ProcessState.STARTING, status.stage or "the engine is starting")
        if status.state is EngineState.DRAINING:
            return Finding(ProcessState.DRAINING, f"the engine {status.detail or 'drains'}")
        is_busy = self._calls.num_open or status.load.num_running or status.load.num_waiting
        return Finding(ProcessState.BUSY if is_busy else ProcessState.IDLE)

    @property
    def given_up(self) -> str:
        """Why there will be no engine until somebody starts the service again; empty if it can still come."""
        return next((process.detail for process in self._engine_processes() if process.is_given_up), "")

    def engine_state(self) -> tuple[EngineState, str]:
        """What the engine can do, and with which stage it is busy while it starts, or starts again."""
        if self.given_up:
            return EngineState.UNAVAILABLE, ""
        status, process = self._engines.status, self._hindrance()
        if status.state is EngineState.READY and process is not None:
            return EngineState.STARTING, f"restarting {process.name}"
        return status.state, status.stage

    def check_engine_can_come(self) -> None:
        """May a request wait for the engine?

        Raises:
            EngineUnavailableError: there will be none.
        """
        if self.given_up:
            raise EngineUnavailableError(f"the engine is unavailable: {self.given_up}")

    def _hindrance(self) -> ProcessReport | None:
        """The process for which no request can run now; the worst if there are several."""
        processes = self._engine_processes()
        lost = [process for process in processes if process.state in _LOST]
        # At its first start the scheduler's word is as good and comes sooner.
        again = [process for process in processes if process.state is ProcessState.STARTING and process.num_restarts]
        lost.sort(key=lambda process: not process.is_given_up)
        return next(iter([*lost, *again]), None)

    def _engine_processes(self) -> list[ProcessReport]:
        processes = self.report.processes if self.report is not None else ()
        return [process for process in processes if not process.is_gateway]
