"""Is this gateway fit for requests? Answers grpc.health.v1 with what the scheduler says of the engine.

Nothing is kept of the names that callers ask for, so that nobody can fill the memory with them.
"""

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2

from scheduler_service.gateway import handlers
from scheduler_service.gateway.exceptions import UnknownServiceError
from scheduler_service.gateway.inference_service import SERVICE_NAME

HEALTH_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
LIVENESS = "liveness"


class HealthReporter:
    """Serves grpc.health.v1 for the whole server ("") and for each service that generates. Begins NOT_SERVING.

    The name "liveness" is SERVING as long as this process answers, whatever becomes of the engine. Who restarts
    gateways asks for that, since one that waits for its engine holds streams that go on later.
    """

    def __init__(self, servers: Iterable[grpc.aio.Server]) -> None:
        methods = {
            "Check": handlers.unary(health_pb2.HealthCheckRequest, self._check),
            "List": handlers.unary(health_pb2.HealthListRequest, self._list),
            "Watch": handlers.server_streaming(health_pb2.HealthCheckRequest, self._watch),
        }
        for server in servers:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_NAME, methods),))
        self._names = ["", SERVICE_NAME, LIVENESS]
        self._is_serving = False
        self._is_stopped = False
        self._changed = asyncio.Event()

    def add_services(self, names: Iterable[str]) -> None:
        """Answer for further services, too."""
        self._names += names

    def set_serving(self, is_serving: bool) -> None:
        """Report a new state to the callers who check or watch."""
        self._is_serving = is_serving and not self._is_stopped
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Report NOT_SERVING from now on."""
        self._is_stopped = True
        self.set_serving(False)

    async def _check(
        self, request: health_pb2.HealthCheckRequest, _context: handlers.Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            raise UnknownServiceError(request.service)
        return self._status(request.service)

    async def _list(
        self, _request: health_pb2.HealthListRequest, _context: handlers.Context
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in self._names})

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: handlers.Context) -> None:
        sent = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != sent:
                await context.write(status)
                sent = status
            await changed.wait()

    def _status(self, name: str) -> health_pb2.HealthCheckResponse:
        if name not in self._names:
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        elif self._is_serving or name == LIVENESS:
            status = health_pb2.HealthCheckResponse.SERVING
        else:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)
