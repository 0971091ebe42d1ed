"""When is a container started, ready, or to be started again? By its probes, counted as the kubelet counts them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes.chart import Manifest

# Each probe comes over a connection of its own.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class Probe:
    """One gRPC probe, with the kubelet's defaults. Others are refused: the chart has none."""

    port: int
    service: str
    initial_delay_s: float
    period_s: float
    timeout_s: float
    num_failures: int
    num_successes: int

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """What a container's manifest says.

        Raises:
            KeyError: it is not a gRPC probe.
        """
        return cls(
            manifest["grpc"]["port"],
            manifest["grpc"].get("service", ""),
            manifest.get("initialDelaySeconds", 0),
            manifest.get("periodSeconds", 10),
            manifest.get("timeoutSeconds", 1),
            manifest.get("failureThreshold", 3),
            manifest.get("successThreshold", 1),
        )

    async def verdicts(self, address: str) -> AsyncIterator[bool]:
        """Ask again and again; yields whether all is well when that is clear for the first time, or changes."""
        await asyncio.sleep(self.initial_delay_s)
        verdict: bool | None = None
        last, row = True, 0
        while True:
            began_s = asyncio.get_running_loop().time()
            answer = await self.ask(address)
            row = row + 1 if answer is last else 1
            last = answer
            enough = self.num_successes if answer else self.num_failures
            if row >= enough and answer is not verdict:
                verdict = answer
                yield verdict
            await asyncio.sleep(began_s + self.period_s - asyncio.get_running_loop().time())

    async def ask(self, address: str) -> bool:
        """Ask once."""
        async with grpc.aio.insecure_channel(f"{address}:{self.port}", options=_OPTIONS) as channel:
            request = health_pb2.HealthCheckRequest(service=self.service)
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=self.timeout_s)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
