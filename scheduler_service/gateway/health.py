"""Is this gateway fit for requests? Tells grpc.health.v1 what the scheduler says of the engine."""

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from scheduler_service.gateway.inference_service import SERVICE_NAME


class HealthReporter:
    """Serves grpc.health.v1 for the whole server ("") and for each service that generates. Begins NOT_SERVING."""

    def __init__(self, servers: Iterable[grpc.aio.Server]) -> None:
        self._servicer = health.aio.HealthServicer()
        for server in servers:
            health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._names = ["", SERVICE_NAME]
        self._is_serving = False
        self._changed = asyncio.Event()
        self._changed.set()

    def add_services(self, names: Iterable[str]) -> None:
        """Report on further services, too."""
        self._names += names
        self._changed.set()

    def set_serving(self, is_serving: bool) -> None:
        """Report a new state."""
        self._is_serving = is_serving
        self._changed.set()

    async def run(self) -> None:
        """Pass every new state on to the callers who check or watch."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            serving = health_pb2.HealthCheckResponse.SERVING
            status = serving if self._is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in self._names:
                await self._servicer.set(name, status)

    async def stop(self) -> None:
        """Report NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()
