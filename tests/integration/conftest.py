"""A gateway between a real gRPC stub and a scheduler that the test plays."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.tiny_model import write_tiny_model

VOCAB_SIZE = 300
EOS_ID = 265


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeScheduler]:
    address = f"ipc://{tmp_path_factory.mktemp('s')}/requests.sock"
    with FakeScheduler(address, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS_ID,)) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    with GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log") as process:
        process.wait_until_serving()
        yield process
        assert process.stop() == 0


@pytest.fixture
def stub(gateway: GatewayProcess, scheduler: FakeScheduler) -> Any:
    assert scheduler.take_all() == []
    scheduler.accepts = True
    return gateway.stub()


Beside = Callable[[Callable[[], Any]], "Future[Any]"]


@pytest.fixture
def beside() -> Iterator[Beside]:
    """Runs a call of the client beside the test, which plays the scheduler."""
    with ThreadPoolExecutor(4) as threads:
        yield threads.submit
