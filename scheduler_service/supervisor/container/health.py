"""What do a kubelet's gRPC probes hear of a container's processes? That they are ready, and that none of them hangs."""

from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from scheduler_service.supervisor.errors import ServiceError

READINESS = ""
LIVENESS = "liveness"


class Health:
    """Serves grpc.health.v1 at HOST:PORT while it is entered; `port` is the one that was taken for port 0."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._servicer = health.aio.HealthServicer()
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ServiceError: the address cannot be used.
        """
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise ServiceError(f"cannot listen on {self._address}: {error}; choose another --health-listen") from error
        await self.set(is_ready=False, is_live=True)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""
        await self._server.stop(None)

    async def set(self, *, is_ready: bool, is_live: bool) -> None:
        """Tell this from now on."""
        serving = health_pb2.HealthCheckResponse.ServingStatus
        for name, is_well in ((READINESS, is_ready), (LIVENESS, is_live)):
            await self._servicer.set(name, serving.SERVING if is_well else serving.NOT_SERVING)
