"""Does the gateway notice a scheduler that is connected but says nothing, and tell the scheduler of each abort once?"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pagewire.ipc.requests import Abort, EngineState, Goodbye, Rejected, RejectReason, Submit
from scheduler_service.gateway.engines import engine
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.exceptions import EngineOverloadedError, EngineUnavailableError, GatewayDrainingError
from scheduler_service.gateway.stream import Stream
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.patience import PATIENCE_S
from tests.fakes.reachable import reachable
from tests.fakes.tiny_model import byte_level_ids
from tests.fakes.watched_pool import GENERATION, WatchedPool, taken


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/requests.sock"


def test_silent_scheduler_is_unavailable_until_it_speaks(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_HELLO_PERIOD_S", 0.01)
    monkeypatch.setattr(engine, "_QUIET_AFTER_S", 0.05)
    # A scheduler that speaks is patiently waited for, however slow its thread is.
    monkeypatch.setattr(engine, "_HUNG_AFTER_S", PATIENCE_S)

    async def run(scheduler: FakeScheduler) -> None:
        watched = WatchedPool(address)
        pool = watched.pool
        await watched.until(EngineState.READY)
        stream = pool.open(GENERATION)
        submit = await taken(lambda: scheduler.take(Submit))
        assert isinstance(submit, Submit)
        scheduler.is_silent = True
        monkeypatch.setattr(engine, "_HUNG_AFTER_S", 0.2)
        await watched.until(EngineState.UNAVAILABLE)
        assert "is silent" in pool.status.detail
        with pytest.raises(EngineUnavailableError):
            pool.open(GENERATION)
        monkeypatch.setattr(engine, "_HUNG_AFTER_S", PATIENCE_S)
        scheduler.is_silent = False
        await watched.until(EngineState.READY)
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
        assert (await stream.next()).text == "x"
        pool.shut_down()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))


def test_a_gateway_that_is_held_up_does_not_take_that_for_silence(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_HELLO_PERIOD_S", 0.01)
    monkeypatch.setattr(engine, "_QUIET_AFTER_S", 0.05)
    monkeypatch.setattr(engine, "_HUNG_AFTER_S", PATIENCE_S)

    async def run() -> None:
        watched = WatchedPool(address)
        await watched.until(EngineState.READY)
        changes: list[EngineState] = []
        watched.pool.engine_changed = lambda engine: changes.append(engine.status.state)  # type: ignore[method-assign]
        monkeypatch.setattr(engine, "_HUNG_AFTER_S", 2.0)
        for _ in range(2):
            held_up_until_s = time.monotonic() + 3.0
            while time.monotonic() < held_up_until_s:
                pass
            await asyncio.sleep(0.1)
        assert changes == []
        watched.pool.shut_down()

    with FakeScheduler(address):
        asyncio.run(run())


def test_streams_closed_together_are_aborted_by_one_message(address: str) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        watched = WatchedPool(address)
        pool = watched.pool
        await watched.until(EngineState.READY)
        streams = [pool.open(GENERATION) for _ in range(5)]
        assert len({stream.stream_id for stream in streams}) == pool.num_streams == 5
        for _ in streams:
            await taken(lambda: scheduler.take(Submit))
        for stream in [*streams[:3], *streams[:3]]:
            pool.close(stream)
        first = await taken(lambda: scheduler.take(Abort))
        assert first == Abort(tuple(stream.stream_id for stream in streams[:3]))
        pool.shut_down()
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
        watched = WatchedPool(address)
        await watched.until(EngineState.READY)
        stream = watched.pool.open(GENERATION)
        watched.pool.shut_down()
        watched.pool.close(stream)
        await asyncio.sleep(0)

    with FakeScheduler(address):
        asyncio.run(run())
    assert failures == []


def test_who_waits_for_the_engine_is_told_when_it_is_there_and_when_nobody_comes(address: str) -> None:
    async def run() -> None:
        watched = WatchedPool(address)
        pool = watched.pool
        waiting = asyncio.create_task(pool.wait_for_engine())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        with FakeScheduler(address):
            await waiting
            pool.ready_engine()
        await watched.until(EngineState.UNAVAILABLE)
        waiting = asyncio.create_task(pool.wait_for_engine())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        pool.end_streams(EngineUnavailableError("given up"))
        await waiting
        pool.shut_down()

    asyncio.run(run())


def test_waiting_for_the_engine_has_an_end(address: str) -> None:
    async def run() -> None:
        pool = WatchedPool(address, recovery_timeout_s=0.05).pool
        await pool.wait_for_engine()
        with pytest.raises(EngineUnavailableError, match="is starting"):
            pool.ready_engine()
        pool.shut_down()

    asyncio.run(run())


def test_stream_ids_are_not_reused_while_they_are_open(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MAX_STREAM_ID", 3)

    async def run() -> None:
        watched = WatchedPool(address)
        pool = watched.pool
        await watched.until(EngineState.READY)
        first, second = pool.open(GENERATION), pool.open(GENERATION)
        pool.close(pool.open(GENERATION))
        pool.close(first)
        reused = [pool.open(GENERATION).stream_id for _ in range(2)]
        assert (first.stream_id, second.stream_id, reused) == (1, 2, [1, 3])
        pool.shut_down()

    with FakeScheduler(address):
        asyncio.run(run())


def test_streams_that_are_closed_while_the_gateway_shuts_down_need_no_abort(address: str) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        watched = WatchedPool(address)
        pool = watched.pool
        await watched.until(EngineState.READY)
        before, after = pool.open(GENERATION), pool.open(GENERATION)
        pool.close(before)
        pool.shut_down()
        pool.close(after)
        await asyncio.sleep(0)
        assert pool.num_streams == 0
        assert problems == []

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))


async def end(pool: EnginePool, scheduler: FakeScheduler) -> None:
    stream = pool.open(GENERATION)
    scheduler.send_stream(stream.stream_id, byte_level_ids(b"x"), stop_at_length(stream.stream_id))
    while not stream.is_finished:
        await stream.next()
    pool.close(stream)


async def refuse(pool: EnginePool, scheduler: FakeScheduler) -> None:
    stream = pool.open(GENERATION)
    scheduler.send(Rejected(stream.stream_id, RejectReason.OVERLOADED, "", "full"))
    with pytest.raises(EngineOverloadedError):
        await stream.next()


async def cancel(pool: EnginePool, scheduler: FakeScheduler) -> None:
    pool.close(pool.open(GENERATION))


async def cancel_without_a_scheduler(pool: EnginePool, scheduler: FakeScheduler) -> None:
    stream = pool.open(GENERATION)
    pool.engines[0]._disconnected()
    pool.close(stream)
    scheduler.become_another()


async def give_up_without_a_scheduler(pool: EnginePool, scheduler: FakeScheduler) -> None:
    pool.open(GENERATION)
    pool.engines[0]._disconnected()
    pool.end_streams(EngineUnavailableError("gone"))
    scheduler.become_another()


@pytest.mark.parametrize("way", [end, refuse, cancel, cancel_without_a_scheduler, give_up_without_a_scheduler])
def test_nothing_is_left_of_streams_that_are_over(
    address: str, way: Callable[[EnginePool, FakeScheduler], Awaitable[None]]
) -> None:
    async def run(scheduler: FakeScheduler) -> None:
        watched = WatchedPool(address)
        for _ in range(5):
            await watched.until(EngineState.READY)
            await way(watched.pool, scheduler)
        # What was planned for the event loop's next turn is done then.
        await asyncio.sleep(0)
        gc.collect()
        assert [item for item in reachable(watched.pool) if isinstance(item, Stream)] == []
        assert watched.pool.num_streams == 0
        watched.pool.shut_down()

    with FakeScheduler(address) as scheduler:
        asyncio.run(run(scheduler))
