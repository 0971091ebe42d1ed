"""Do two tenants get their streams side by side? A gateway's client, a scheduler process, a fake worker."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler_service.gateway.exceptions import EngineOverloadedError
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.scheduler_client import SchedulerClient
from scheduler_service.gateway.stream import Stream
from tests.fakes.step_executor import complete
from tests.integration.test_scheduler_process import Service
from tests.unit.gateway.test_scheduler_client import GENERATION, EngineState, Watched

NUM_FLOODING, NUM_OTHERS, MAX_TOKENS = 60, 6, 10


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path, "--max-waiting-requests", str(NUM_FLOODING))
    yield running
    running.close()


def generation(tenant: str, number: int) -> Generation:
    return replace(
        GENERATION, request_id=f"{tenant}-{number}", tenant=tenant, prompt_ids=int32_array([1, number % 50, 3])
    )


async def read(client: SchedulerClient, stream: Stream, ended: list[str]) -> list[int]:
    """All tokens of a stream; its tenant is noted when it ends."""
    token_ids: list[int] = []
    while True:
        output = await stream.next()
        token_ids += output.token_ids
        if output.finish is not None:
            ended.append(stream.generation.tenant)
            client.close(stream)
            return token_ids


def test_a_tenant_does_not_wait_for_the_flood_of_another(service: Service) -> None:
    worker = service.worker()
    ended: list[str] = []

    async def run() -> None:
        watched = Watched(service.request_address)
        await watched.until(EngineState.READY)
        client = watched.client
        worker.hold.clear()
        generations = [generation("flood", number) for number in range(NUM_FLOODING)]
        streams = [client.open(one) for one in generations]
        for stream in streams:
            await stream.accepted()
        # There is no room left for the flood, but for others.
        refused = [client.open(generation("flood", number)) for number in range(1000, 1000 + NUM_FLOODING)]
        others = [client.open(generation("other", number)) for number in range(NUM_OTHERS)]
        for stream in others:
            await stream.accepted()
        with pytest.raises(EngineOverloadedError):
            await refused[-1].accepted()
        worker.hold.set()
        tokens = await asyncio.gather(*(read(client, stream, ended) for stream in (*streams, *others)))
        for stream, token_ids in zip((*streams, *others), tokens, strict=True):
            assert token_ids == complete(list(stream.generation.prompt_ids), MAX_TOKENS)
        client.shut_down()

    asyncio.run(run())
    last_other = len(ended) - ended[::-1].index("other")
    # Eight have the slots when the others come; then both take turns.
    assert last_other <= 8 + 2 * NUM_OTHERS + 8
