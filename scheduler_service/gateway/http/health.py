"""What do /healthz and /readyz say?

/healthz   200 while this gateway and its scheduler make progress, or start; else 503
/readyz    200 while requests should be sent here; else 503
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pagewire.ipc.supervision import ProcessState
from scheduler_service.gateway.service_state import Finding, ServiceState

_NOT_LIVE = (ProcessState.HUNG, ProcessState.DEAD)


def health_routes(state: ServiceState) -> list[Route]:
    """Both paths, for GET and HEAD."""
    return [
        Route("/healthz", _page(state, lambda found: found.state not in _NOT_LIVE)),
        Route("/readyz", _page(state, lambda found: found.is_serving)),
    ]


def _page(state: ServiceState, is_well: Callable[[Finding], bool]) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def answer(_request: Request) -> JSONResponse:
        found = state.find()
        status = HTTPStatus.OK if is_well(found) else HTTPStatus.SERVICE_UNAVAILABLE
        processes = [asdict(process) for process in state.report.processes] if state.report is not None else []
        content = {"state": found.state, "reason": found.reason, "processes": processes}
        return JSONResponse(content, status.value, {"Cache-Control": "no-store"})

    return answer
