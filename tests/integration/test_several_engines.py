"""Do callers of one gateway over two engines notice that engines come, die and go? Real processes, and fake workers."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagewire_client import Client, SamplingParams
from pagewire_client.types import EngineState
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.patience import PATIENCE_S, PATIENT, wait_until
from tests.fakes.scheduler_process import SchedulerProcess
from tests.fakes.step_executor import complete
from tests.fakes.tiny_model import write_tiny_model

NUM_STREAMS, MAX_TOKENS = 12, 40
PARAMS = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)


class Engines:
    """Engines by number, each in a folder of its own, and a gateway that is told of two."""

    def __init__(self, folder: Path) -> None:
        self._folders = [folder / str(number) for number in range(2)]
        self.running: dict[int, SchedulerProcess] = {}
        for number, one in enumerate(self._folders):
            one.mkdir()
            self.start(number)
        flags = ("--scheduler-address", f"ipc://{self._folders[1]}/requests")
        model = write_tiny_model(folder / "model")
        self.gateway = GatewayProcess(model, f"ipc://{self._folders[0]}/requests", folder / "log", *flags)

    def start(self, number: int) -> None:
        """Start an engine, or start it again."""
        engine = self.running[number] = SchedulerProcess(self._folders[number], "--drain-timeout", "200")
        engine.worker()

    def kill(self, number: int) -> None:
        """End an engine without a word, scheduler and worker."""
        self.running.pop(number).close()

    def hold(self, *, is_held: bool) -> None:
        """Let no worker execute steps, or all again."""
        for engine in self.running.values():
            for worker in engine.workers:
                worker.hold() if is_held else worker.go_on()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    running = Engines(tmp_path)
    with running.gateway:
        running.gateway.wait_until_serving()
        yield running
    for number in list(running.running):
        running.kill(number)


@pytest.fixture
def client(engines: Engines) -> Iterator[Client]:
    with Client(engines.gateway.address, timeout_s=PATIENCE_S, retry=PATIENT) as connected:
        wait_until(lambda: [one.state for one in connected.server_info().engines] == [EngineState.READY] * 2)
        yield connected


class Streams:
    """Streams that run in threads of their own."""

    def __init__(self, client: Client) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(NUM_STREAMS)]
        self._threads = [threading.Thread(target=self._read, args=(client, number)) for number in range(NUM_STREAMS)]
        for thread in self._threads:
            thread.start()

    def _read(self, client: Client, number: int) -> None:
        for chunk in client.stream(prompt(number), PARAMS):
            self.tokens[number] += chunk.token_ids

    def join(self) -> list[list[int]]:
        """All tokens, once there are no more."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return self.tokens


def prompt(number: int) -> list[int]:
    return [1, number, 3]


EXPECTED = [complete(prompt(number), MAX_TOKENS) for number in range(NUM_STREAMS)]


def num_streams(client: Client) -> list[int]:
    return [engine.num_streams for engine in client.server_info().engines]


def test_streams_are_spread_and_outlive_one_engine_after_the_other(engines: Engines, client: Client) -> None:
    engines.hold(is_held=True)
    streams = Streams(client)
    wait_until(lambda: sum(num_streams(client)) == NUM_STREAMS)
    assert min(num_streams(client)) > 0
    engines.kill(0)
    wait_until(lambda: num_streams(client)[1] == NUM_STREAMS)
    engines.start(0)
    wait_until(lambda: client.server_info().engines[0].state is EngineState.READY)
    # Some have tokens by then, and go on at the other engine with these.
    engines.running[1].workers[0].hold(after=10)
    wait_until(lambda: any(streams.tokens))
    engines.kill(1)
    assert streams.join() == EXPECTED


def test_an_engine_that_drains_finishes_what_runs_and_gets_nothing_new(engines: Engines, client: Client) -> None:
    draining = engines.running[0]
    engines.hold(is_held=True)
    streams = Streams(client)
    wait_until(lambda: sum(num_streams(client)) == NUM_STREAMS)
    num_left = num_streams(client)[0]
    assert 0 < num_left < NUM_STREAMS
    draining.workers[0].hold(after=5)
    engines.running[1].workers[0].go_on()
    wait_until(lambda: num_streams(client) == [num_left, 0])
    draining.process.terminate()
    wait_until(lambda: client.server_info().engines[0].state is EngineState.DRAINING)
    for _ in range(4):
        assert list(client.generate(prompt(0), PARAMS).token_ids) == EXPECTED[0]
    assert num_streams(client) == [num_left, 0]
    engines.hold(is_held=False)
    assert draining.process.wait(PATIENCE_S) == 0
    assert streams.join() == EXPECTED


def test_status_and_metrics_tell_of_each_engine(engines: Engines, client: Client) -> None:
    info = client.server_info()
    assert info.scheduler_incarnation == ""
    assert len({engine.scheduler_incarnation for engine in info.engines}) == 2
    assert info.limits.num_blocks == 2 * 64
    assert info.load.num_free_blocks == sum(engine.load.num_free_blocks for engine in info.engines)
    engines.kill(0)
    wait_until(lambda: client.server_info().engines[0].state is EngineState.UNAVAILABLE)
    assert client.server_info().scheduler_incarnation == client.server_info().engines[1].scheduler_incarnation
    assert "no scheduler answers" in client.server_info().engines[0].detail
