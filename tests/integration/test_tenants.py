"""Do two tenants get their streams side by side? Callers with API keys, a gateway, a scheduler, and a fake worker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.api_keys import bearer, write_keys
from tests.fakes.fake_worker import FakeWorker
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, error_reason, generate_request
from tests.fakes.scheduler_process import SchedulerProcess
from tests.fakes.step_executor import complete
from tests.fakes.tiny_model import write_tiny_model

NUM_FLOODING, NUM_OTHERS, NUM_SLOTS, MAX_TOKENS = 60, 6, 8, 10


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SchedulerProcess]:
    running = SchedulerProcess(tmp_path, "--max-waiting-requests", str(NUM_FLOODING))
    yield running
    running.close()


@pytest.fixture
def worker(service: SchedulerProcess) -> FakeWorker:
    return service.worker()


@pytest.fixture
def gateway(service: SchedulerProcess, worker: FakeWorker, tmp_path: Path) -> Iterator[GatewayProcess]:
    write_keys(tmp_path / "keys.toml", flood={}, other={})
    flags = ("--api-keys", str(tmp_path / "keys.toml"))
    with GatewayProcess(
        write_tiny_model(tmp_path / "model"), service.request_address, tmp_path / "log", *flags
    ) as process:
        process.wait_until_serving()
        yield process


def prompt(number: int) -> list[int]:
    return [1, number % 50, 3]


def generate(stub: Any, tenant: str, number: int) -> Any:
    request = generate_request(
        token_ids={"ids": prompt(number)}, stopping={"max_tokens": MAX_TOKENS}, sampling={"temperature": 0.0}
    )
    return stub.Generate(request, metadata=bearer(tenant), timeout=TIMEOUT_S)


def test_a_tenant_does_not_wait_for_the_flood_of_another(gateway: GatewayProcess, worker: FakeWorker) -> None:
    stub = gateway.stub()
    worker.hold()
    flood = [generate(stub, "flood", number) for number in range(NUM_FLOODING)]
    assert all(next(call).HasField("accepted") for call in flood)
    # Those that have got slots leave room for as many.
    more = [generate(stub, "flood", number) for number in range(NUM_FLOODING, NUM_FLOODING + 3 * NUM_SLOTS)]
    with pytest.raises(grpc.RpcError) as caught:
        list(map(next, more))
    assert error_reason(caught.value) == "ENGINE_OVERLOADED"
    others = [generate(stub, "other", number) for number in range(NUM_OTHERS)]
    other_ids = [next(call).accepted.request_id for call in others]
    for call in more:
        call.cancel()
    worker.go_on()
    for calls in (flood, others):
        for number, call in enumerate(calls):
            token_ids = [token_id for event in call for token_id in event.delta.token_ids]
            assert token_ids == complete(prompt(number), MAX_TOKENS)
    last_other = max(map(worker.request_ids.index, other_ids))
    # Those that had the slots; then both tenants in turn.
    assert last_other < NUM_SLOTS + 2 * NUM_OTHERS
