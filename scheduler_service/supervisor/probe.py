"""What is the engine doing? Asks a gateway, as any client may."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from pagewire.v1 import inference_pb2, inference_pb2_grpc

# On a busy machine an answer may take seconds; a gateway that is gone or hangs is found by others, and sooner.
_TIMEOUT_S = 10.0
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A gateway's word about the engine. `total` 0 means not known."""

    is_ready: bool
    stage: str
    done: int
    total: int


class Probe:
    """Asks one gateway."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def ask(self) -> EngineReport | None:
        """Give the engine's state; None while the gateway does not answer."""
        try:
            info = await self._stub.GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return None
        progress = info.progress
        is_ready = info.engine_state == inference_pb2.ENGINE_STATE_READY
        return EngineReport(is_ready, progress.stage, progress.done, progress.total)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
