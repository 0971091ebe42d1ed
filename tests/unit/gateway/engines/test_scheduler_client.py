"""Does the gateway notice a scheduler that is connected but says nothing, and tell the scheduler of each abort once?"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pagewire.ipc.requests import Abort, EngineState, Goodbye, Rejected, RejectReason, Sampling, Submit
from scheduler_service.gateway.engines import scheduler_client
from scheduler_service.gateway.engines.scheduler_client import SchedulerClient
from scheduler_service.gateway.exceptions import EngineOverloadedError, EngineUnavailableError, GatewayDrainingError
from scheduler_service.gateway.generation import Generation, int32_array
from scheduler_service.gateway.stream import Stream
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.patience import PATIENCE_S
from tests.fakes.reachable import reachable
from tests.fakes.tiny_model import byte_level_ids, byte_level_tokenizer

GENERATION = Generation(
    request_id="r",
    prompt_ids=int32_array([1]),
    received_ids=int32_array(),
    sampling=Sampling(1.0, 0, 1.0, 0.0, 0),
    max_tokens=10,
    min_tokens=0,
    stop_token_ids=(),
    end_token_ids=frozenset(),
    ignore_eos=False,
    priority=0,
    cache_salt="",
    deadline_s=None,
    stop_texts=(),
    include_stop=False,
    skip_special_tokens=True,
    sends_text=True,
    is_final_only=False,
)


class Watched:
    """A client whose states can be waited for."""

    def __init__(self, address: str, recovery_timeout_s: float = 60.0) -> None:
        self._changed = asyncio.Event()
        tokenizer = Tokenizer(byte_level_tokenizer(), {})
        self.client = SchedulerClient(address, "test", tokenizer, self._changed.set, recovery_timeout_s)

    async def until(self, state: EngineState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.client.status.state is not state:
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/requests.sock"


async def taken(take: Callable[[], object]) -> object:
    return await asyncio.to_thread(take)


def test_silent_scheduler_is_unavailable_until_it_speaks(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_client, "_HELLO_PERIOD_S", 0.01)
    monkeypatch.setattr(scheduler_client, "_QUIET_AFTER_S", 0.05)
    # A scheduler that speaks is patiently waited for, however slow its thread is.
    monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", PATIENCE_S)

    async def run(scheduler: FakeScheduler) -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        stream = client.open(GENERATION)
        submit = await taken(lambda: scheduler.take(Submit))
        assert isinstance(submit, Submit)
        scheduler.is_silent = True
        monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", 0.2)
        await watched.until(EngineState.UNAVAILABLE)
        assert "is silent" in client.status.detail
        with pytest.raises(EngineUnavailableError):
            client.open(GENERATION)
        monkeypatch.setattr(scheduler_client, "_HUNG_AFTER_S", PATIENCE_S)
        scheduler.is_silent = False
        await watched.until(EngineState.READY)
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
        assert (await stream.next()).text == "x"
        client.shut_down()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))


def test_streams_closed_together_are_aborted_by_one_message(address: str) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        streams = [client.open(GENERATION) for _ in range(5)]
        assert len({stream.stream_id for stream in streams}) == client.num_streams == 5
        for _ in streams:
            await taken(lambda: scheduler.take(Submit))
        for stream in [*streams[:3], *streams[:3]]:
            client.close(stream)
        first = await taken(lambda: scheduler.take(Abort))
        assert first == Abort(tuple(stream.stream_id for stream in streams[:3]))
        client.shut_down()
        assert await taken(lambda: scheduler.take(Goodbye)) == Goodbye()
        for stream in streams[3:]:
            with pytest.raises(GatewayDrainingError, match="shutting down"):
                await stream.next()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))
        assert scheduler.take_all() == []


def test_streams_closed_after_the_end_are_no_error(address: str) -> None:
    """The calls whose streams the end of the gateway cut close them when its socket is gone."""
    failures: list[dict[str, object]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, failure: failures.append(failure))
        watched = Watched(address)
        await watched.until(EngineState.READY)
        stream = watched.client.open(GENERATION)
        watched.client.shut_down()
        watched.client.close(stream)
        await asyncio.sleep(0)

    with FakeScheduler(address):
        asyncio.run(run())
    assert failures == []


def test_who_waits_for_the_engine_is_told_when_it_is_there_and_when_nobody_comes(address: str) -> None:
    async def run() -> None:
        watched = Watched(address)
        client = watched.client
        waiting = asyncio.create_task(client.wait_for_engine())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        with FakeScheduler(address):
            await waiting
            client.ready_engine()
        await watched.until(EngineState.UNAVAILABLE)
        waiting = asyncio.create_task(client.wait_for_engine())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        client.end_streams(EngineUnavailableError("given up"))
        await waiting
        client.shut_down()

    asyncio.run(run())


def test_waiting_for_the_engine_has_an_end(address: str) -> None:
    async def run() -> None:
        client = Watched(address, recovery_timeout_s=0.05).client
        await client.wait_for_engine()
        with pytest.raises(EngineUnavailableError, match="is starting"):
            client.ready_engine()
        client.shut_down()

    asyncio.run(run())


def test_stream_ids_are_not_reused_while_they_are_open(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_client, "_MAX_STREAM_ID", 3)

    async def run() -> None:
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        first, second = client.open(GENERATION), client.open(GENERATION)
        client.close(client.open(GENERATION))
        client.close(first)
        reused = [client.open(GENERATION).stream_id for _ in range(2)]
        assert (first.stream_id, second.stream_id, reused) == (1, 2, [1, 3])
        client.shut_down()

    with FakeScheduler(address):
        asyncio.run(run())


def test_streams_that_are_closed_while_the_gateway_shuts_down_need_no_abort(address: str) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        watched = Watched(address)
        client = watched.client
        await watched.until(EngineState.READY)
        before, after = client.open(GENERATION), client.open(GENERATION)
        client.close(before)
        client.shut_down()
        client.close(after)
        await asyncio.sleep(0)
        assert client.num_streams == 0
        assert problems == []

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))


async def end(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    stream = client.open(GENERATION)
    scheduler.send_stream(stream.stream_id, byte_level_ids(b"x"), stop_at_length(stream.stream_id))
    while not stream.is_finished:
        await stream.next()


async def refuse(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    stream = client.open(GENERATION)
    scheduler.send(Rejected(stream.stream_id, RejectReason.OVERLOADED, "", "full"))
    with pytest.raises(EngineOverloadedError):
        await stream.next()


async def cancel(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    client.close(client.open(GENERATION))


async def cancel_without_a_scheduler(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    stream = client.open(GENERATION)
    client._disconnected()
    client.close(stream)
    scheduler.become_another()


async def give_up_without_a_scheduler(client: SchedulerClient, scheduler: FakeScheduler) -> None:
    client.open(GENERATION)
    client._disconnected()
    client.end_streams(EngineUnavailableError("gone"))
    scheduler.become_another()


@pytest.mark.parametrize("way", [end, refuse, cancel, cancel_without_a_scheduler, give_up_without_a_scheduler])
def test_nothing_is_left_of_streams_that_are_over(
    address: str, way: Callable[[SchedulerClient, FakeScheduler], Awaitable[None]]
) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        watched = Watched(address)
        for _ in range(5):
            await watched.until(EngineState.READY)
            await way(watched.client, scheduler)
        # What was planned for the event loop's next turn is done then.
        await asyncio.sleep(0)
        gc.collect()
        assert [item for item in reachable(watched.client) if isinstance(item, Stream)] == []
        assert watched.client.num_streams == 0
        watched.client.shut_down()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))
