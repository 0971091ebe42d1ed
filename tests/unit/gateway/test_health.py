"""Does the health service keep anything of what it is asked?"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scheduler_service.gateway.health import HealthReporter
from tests.fakes.patience import PATIENCE_S
from tests.fakes.reachable import reachable

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_names_that_callers_make_up_are_not_kept() -> None:
    asyncio.run(_watch_many_names())


async def _watch_many_names() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    reporter = HealthReporter([server])
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for number in range(20):
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=f"made-up-{number}"), timeout=PATIENCE_S)
            await watch.read()
            watch.cancel()
    await server.stop(None)
    assert not [item for item in reachable(reporter) if isinstance(item, str) and item.startswith("made-up-")]


def test_watchers_learn_of_every_change_until_the_end() -> None:
    asyncio.run(_watch_changes())


async def _watch_changes() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    reporter = HealthReporter([server])
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert (await watch.read()).status == NOT_SERVING
        reporter.set_serving(True)
        assert (await watch.read()).status == SERVING
        reporter.stop()
        assert (await watch.read()).status == NOT_SERVING
        reporter.set_serving(True)
        check = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert check.status == NOT_SERVING
    await server.stop(None)
