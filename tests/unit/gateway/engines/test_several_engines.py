"""Do streams find an engine, and keep their tokens, when one of several refuses, drains, dies or falls silent?"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pagewire.ipc.cache_events import BlockRemoved, BlockStored, CacheEvents, WatchCache
from pagewire.ipc.requests import (
    Abort,
    EngineState,
    GetMetrics,
    Goodbye,
    Locate,
    Located,
    MetricValues,
    Rejected,
    RejectReason,
    Started,
    StepTokens,
    Submit,
)
from scheduler_service.gateway.engines import engine as engine_module
from scheduler_service.gateway.engines import searches
from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.engines.pool import EnginePool
from scheduler_service.gateway.exceptions import EngineOverloadedError, EngineUnavailableError
from scheduler_service.gateway.generation import int32_array
from scheduler_service.gateway.stream import Stream
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.patience import PATIENCE_S
from tests.fakes.watched_pool import GENERATION, WatchedPool, taken, until

READY, DRAINING, STARTING = EngineState.READY, EngineState.DRAINING, EngineState.STARTING
Scenario = Callable[["Cluster"], Awaitable[None]]


class Cluster:
    """A pool over two fakes."""

    def __init__(self, fakes: list[FakeScheduler]) -> None:
        self.fakes = fakes
        self.watched = WatchedPool(*(fake.address for fake in fakes))
        self.pool: EnginePool = self.watched.pool

    def fake_of(self, stream: Stream) -> FakeScheduler:
        """The scheduler that runs a stream."""
        (address,) = (engine.address for engine in self.pool.engines if stream in engine.streams)
        return next(fake for fake in self.fakes if fake.address == address)

    def other(self, fake: FakeScheduler) -> FakeScheduler:
        """The other one of two."""
        return next(one for one in self.fakes if one is not fake)

    def engine(self, fake: FakeScheduler) -> Engine:
        """What the pool knows of it."""
        return next(engine for engine in self.pool.engines if engine.address == fake.address)

    async def started(self) -> tuple[Stream, FakeScheduler, Submit]:
        """A stream with one token, its scheduler, and the request as that got it."""
        stream = self.pool.open(GENERATION)
        fake = self.fake_of(stream)
        submit = await take(fake, Submit)
        fake.send_stream(submit.stream_id, [5])
        assert list((await stream.next()).token_ids) == [5]
        return stream, fake, submit


async def take(fake: FakeScheduler, kind: type) -> "Submit":
    return await taken(lambda: fake.take(kind))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Scenario], None]]:
    """Runs a scenario over two engines that are READY."""
    with ExitStack() as stack:
        fakes = [
            stack.enter_context(FakeScheduler(f"ipc://{tmp_path}/{name}.sock", ignores=(WatchCache,)))
            for name in ("first", "second")
        ]

        async def begin(scenario: Scenario) -> None:
            cluster = Cluster(fakes)
            await cluster.watched.until_all(READY, READY)
            await scenario(cluster)
            cluster.pool.shut_down()

        yield lambda scenario: asyncio.run(begin(scenario))


async def end_with(fake: FakeScheduler, stream: Stream, token_ids: list[int]) -> list[int]:
    """The rest of a stream that ends with these tokens."""
    fake.send_stream(stream.stream_id, token_ids, stop_at_length(stream.stream_id))
    tokens: list[int] = []
    while True:
        output = await stream.next()
        tokens += output.token_ids
        if output.finish is not None:
            return tokens


def test_a_full_engine_is_passed_over_until_all_are_full(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        for fake in cluster.fakes:
            fake.accepts = False
        stream = cluster.pool.open(GENERATION)
        first = cluster.fake_of(stream)
        submit = await take(first, Submit)
        first.send(Rejected(submit.stream_id, RejectReason.OVERLOADED, "waiting_requests", "full", 3.0))
        second = cluster.other(first)
        submit = await take(second, Submit)
        second.send(Rejected(submit.stream_id, RejectReason.OVERLOADED, "waiting_requests", "full", 2.0))
        with pytest.raises(EngineOverloadedError) as caught:
            await stream.accepted()
        assert caught.value.retry_after_s == 2.0
        assert cluster.pool.num_streams == 0

    run(scenario)


def test_an_engine_that_was_full_once_takes_streams_of_one_that_is_lost(tmp_path: Path) -> None:
    async def scenario(fakes: list[FakeScheduler], lost: FakeScheduler) -> None:
        cluster = Cluster(fakes)
        await cluster.watched.until_all(READY, READY)
        full = cluster.other(lost)
        full.accepts = False
        streams = [cluster.pool.open(GENERATION) for _ in range(8)]
        refused = [stream for stream in streams if cluster.fake_of(stream) is full]
        assert refused
        for stream in refused:
            submit = await take(full, Submit)
            full.send(Rejected(submit.stream_id, RejectReason.OVERLOADED, "waiting_requests", "full", 3.0))
            await until(partial(getattr, stream, "is_accepted"))
        full.accepts = True
        lost.__exit__(None, None, None)
        await until(lambda: cluster.engine(full).num_streams == 8)
        cluster.pool.shut_down()

    with FakeScheduler(f"ipc://{tmp_path}/full.sock", ignores=(WatchCache,)) as full:
        lost = FakeScheduler(f"ipc://{tmp_path}/lost.sock", ignores=(WatchCache,)).__enter__()
        asyncio.run(scenario([full, lost], lost))


def test_a_request_that_makes_no_sense_is_refused_once(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        stream = cluster.pool.open(GENERATION)
        fake = cluster.fake_of(stream)
        submit = await take(fake, Submit)
        fake.send(Rejected(submit.stream_id, RejectReason.INVALID, "token_ids", "too long"))
        with pytest.raises(Exception, match="too long"):
            await stream.next()
        assert cluster.other(fake).take_all() == []

    run(scenario)


def test_a_draining_engine_keeps_what_runs_and_gives_away_what_waits(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        running, fake, _ = await cluster.started()
        waiting = [cluster.pool.open(GENERATION) for _ in range(6)]
        moving = [stream for stream in waiting if cluster.fake_of(stream) is fake]
        before = {stream.stream_id for stream in moving}
        await until(lambda: all(stream.is_accepted for stream in waiting))
        fake.take_all()
        other = cluster.other(fake)
        other.take_all()
        fake.set_state(DRAINING)
        await until(lambda: cluster.engine(other).num_streams == len(waiting))
        assert moving
        assert all(not stream.is_running for stream in moving)
        submits = [await take(other, Submit) for _ in moving]
        assert all(submit.was_accepted and submit.num_deaths == 0 for submit in submits)
        aborted = await taken(lambda: fake.take(Abort))
        assert isinstance(aborted, Abort)
        assert set(aborted.stream_ids) == before
        assert cluster.fake_of(running) is fake
        assert await end_with(fake, running, [6]) == [6]
        assert {cluster.fake_of(cluster.pool.open(GENERATION)) for _ in range(4)} == {other}

    run(scenario)


def test_streams_of_a_lost_engine_go_on_elsewhere_with_their_tokens(tmp_path: Path) -> None:
    async def scenario(fakes: list[FakeScheduler], lost: FakeScheduler) -> None:
        cluster = Cluster(fakes)
        await cluster.watched.until_all(READY, READY)
        while True:
            stream, fake, submit = await cluster.started()
            if fake is lost:
                break
        lost.__exit__(None, None, None)
        other = cluster.other(lost)
        other.take_all()
        resumed = await take(other, Submit)
        assert resumed.token_ids == submit.token_ids + array("i", [5]).tobytes()
        assert (resumed.was_accepted, resumed.num_deaths, resumed.sampling) == (True, 0, submit.sampling)
        assert await end_with(other, stream, [6]) == [6]
        assert cluster.pool.counts.num_recovered == cluster.pool.counts.num_losses == 1
        cluster.pool.shut_down()

    with FakeScheduler(f"ipc://{tmp_path}/kept.sock", ignores=(WatchCache,)) as kept:
        lost = FakeScheduler(f"ipc://{tmp_path}/lost.sock", ignores=(WatchCache,)).__enter__()
        asyncio.run(scenario([kept, lost], lost))


def test_streams_leave_a_silent_engine_which_is_told_once_it_speaks(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_HELLO_PERIOD_S", 0.01)
    monkeypatch.setattr(engine_module, "_QUIET_AFTER_S", 0.05)
    # Fakes report only when they are greeted.
    monkeypatch.setattr(engine_module, "_HUNG_AFTER_S", PATIENCE_S)

    async def scenario(cluster: Cluster) -> None:
        stream, fake, submit = await cluster.started()
        other = cluster.other(fake)
        fake.is_silent = True
        monkeypatch.setattr(engine_module, "_HUNG_AFTER_S", 1.0)
        resumed = await take(other, Submit)
        assert resumed.token_ids == submit.token_ids + array("i", [5]).tobytes()
        # A late word of the engine that was given up is no second token.
        fake.send_stream(submit.stream_id, [6])
        aborted = await taken(lambda: fake.take(Abort))
        assert isinstance(aborted, Abort)
        assert aborted.stream_ids == (submit.stream_id,)
        assert await end_with(other, stream, [6, 7]) == [6, 7]

    run(scenario)


def test_what_an_engine_may_not_have_heard_it_is_told_again(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        stream, fake, submit = await cluster.started()
        fake.is_silent = True
        cluster.pool.close(stream)
        for _ in range(3):
            aborted = await taken(lambda: fake.take(Abort))
            assert isinstance(aborted, Abort)
            assert aborted.stream_ids == (submit.stream_id,)
            # The connection breaks before another word of the scheduler, and comes back.
            cluster.engine(fake)._disconnected()
            fake.is_silent = False
            await until(lambda: cluster.engine(fake).is_ready)
            fake.is_silent = True

    run(scenario)


def test_deaths_of_workers_are_counted_until_there_is_progress(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        stream, fake, _ = await cluster.started()
        for num_deaths, makes_progress in ((1, False), (1, True), (1, False)):
            other = cluster.other(fake)
            fake.set_state(STARTING)
            submit = await take(other, Submit)
            assert submit.num_deaths == num_deaths
            if makes_progress:
                other.send_stream(submit.stream_id, [6])
                await stream.next()
            fake.set_state(READY)
            await cluster.watched.until_all(READY, READY)
            fake.take_all()
            fake = other

    run(scenario)


def test_a_death_while_a_stream_runs_and_gets_no_further_counts_more(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        _, fake, _ = await cluster.started()
        for num_deaths in (1, 2, 3):
            other = cluster.other(fake)
            fake.set_state(STARTING)
            submit = await take(other, Submit)
            assert submit.num_deaths == num_deaths
            other.send(StepTokens(b"", b"", [], [Started(submit.stream_id, 0)]))
            (moved,) = cluster.engine(other).streams
            await until(partial(getattr, moved, "is_running"))
            fake.set_state(READY)
            await cluster.watched.until_all(READY, READY)
            fake.take_all()
            fake = other

    run(scenario)


@pytest.mark.parametrize("is_anywhere", [True, False])
def test_a_request_that_is_resumed_goes_where_its_sequence_is(
    run: Callable[[Scenario], None], *, is_anywhere: bool
) -> None:
    async def scenario(cluster: Cluster) -> None:
        for number in range(4):
            home = cluster.fakes[number % 2]
            resumed = replace(GENERATION, request_id=f"r{number}", received_ids=int32_array([5]), is_resumed=True)
            stream = cluster.pool.open(resumed)
            for fake in cluster.fakes:
                asked = await taken(lambda fake=fake: fake.take(Locate))
                assert isinstance(asked, Locate)
                assert asked.request_id == f"r{number}"
            for fake in cluster.fakes:
                fake.send(Located(asked.number, is_anywhere and fake is home))
            await until(lambda: cluster.pool.num_waiting_streams == 0)
            fake = cluster.fake_of(stream)
            assert (await take(fake, Submit)).resumes
            assert not is_anywhere or fake is home

    run(scenario)


def test_a_request_that_is_resumed_does_not_wait_for_an_engine_that_does_not_answer(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "_TIMEOUT_S", 0.05)

    async def scenario(cluster: Cluster) -> None:
        stream = cluster.pool.open(replace(GENERATION, received_ids=int32_array([5]), is_resumed=True))
        left = cluster.pool.open(replace(GENERATION, received_ids=int32_array([5]), is_resumed=True))
        assert cluster.pool.num_waiting_streams == 2
        cluster.pool.close(left)
        await until(lambda: cluster.pool.num_waiting_streams == 0)
        assert cluster.pool.num_streams == 1
        assert cluster.fake_of(stream)

    run(scenario)


def test_an_engine_that_serves_another_model_gets_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        stream, fake, submit = await cluster.started()
        other = cluster.other(fake)
        fake.model_name = "another"
        fake.set_state(READY)
        resumed = await take(other, Submit)
        assert resumed.token_ids == submit.token_ids + array("i", [5]).tobytes()
        assert "serves another, this gateway serves model" in cluster.engine(fake).status.detail
        assert {cluster.fake_of(cluster.pool.open(GENERATION)) for _ in range(4)} == {other}
        assert await end_with(other, stream, [6]) == [6]
        fake.model_name = "model"
        fake.set_state(READY)
        await cluster.watched.until_all(READY, READY)

    run(scenario)


def test_no_engine_is_asked_for_more_than_each_takes(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        assert cluster.pool.status.limits is not None
        assert cluster.pool.status.load.num_waiting == 4
        assert cluster.pool.status.limits.num_blocks == 2 * 4096
        assert cluster.pool.ready_engine()[1].num_blocks == 4096
        for fake in cluster.fakes:
            fake.set_state(DRAINING)
        await cluster.watched.until_all(DRAINING, DRAINING)
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            cluster.pool.open(GENERATION)

    run(scenario)


def stored(name: bytes, parent: bytes, tokens: range) -> BlockStored:
    return BlockStored(name, parent, array("i", tokens).tobytes(), "")


def test_requests_go_where_their_prefix_is_cached(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = cluster.fakes
        first.send(CacheEvents(1, True, []))
        second.send(CacheEvents(1, True, [stored(b"a", b"", range(160)), stored(b"b", b"a", range(160, 320))]))
        watched = cluster.engine(second).cache
        await until(lambda: watched._num_messages == 1)
        cached = replace(GENERATION, prompt_ids=int32_array(range(400)))
        assert [cluster.fake_of(cluster.pool.open(cached)) for _ in range(4)] == [second] * 4
        second.send(CacheEvents(2, False, [BlockRemoved(b"b"), BlockRemoved(b"a")]))
        await until(lambda: watched._num_messages == 2)
        other = replace(GENERATION, prompt_ids=int32_array(range(160, 560)))
        assert cluster.fake_of(cluster.pool.open(other)) is first

    run(scenario)


def test_who_follows_the_caches_of_all_is_told_when_one_is_lost(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = cluster.fakes
        subscription = cluster.pool.cache.subscribe()
        waiting = asyncio.create_task(subscription.next())
        first.send(CacheEvents(1, True, [stored(b"a", b"", range(16))]))
        assert await waiting == CacheNews(True, [stored(b"a", b"", range(16))])
        second.send(CacheEvents(1, True, [stored(b"b", b"", range(16))]))
        assert await subscription.next() == CacheNews(False, [stored(b"b", b"", range(16))])
        cluster.pool._take_addresses(frozenset([second.address]))
        assert await subscription.next() == CacheNews(False, [BlockRemoved(b"a")])
        cluster.pool.cache.unsubscribe(subscription)

    run(scenario)


def test_no_engine_keeps_another_from_telling_of_its_cache(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        subscription = cluster.pool.cache.subscribe()
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        told: set[bytes] = set()
        for fake in cluster.fakes:
            fake.send(CacheEvents(1, True, []))
        assert await waiting
        for number in range(2, 8):
            for fake, name in zip(cluster.fakes, (b"a", b"b"), strict=True):
                watched = cluster.engine(fake).cache
                fake.send(CacheEvents(number, False, [BlockRemoved(name)]))
                await until(lambda watched=watched, number=number: watched._num_messages == number)
            # A reader who takes less than there is.
            told |= {
                event.block_hash for event in (await subscription.next()).events if isinstance(event, BlockRemoved)
            }
        assert told == {b"a", b"b"}
        cluster.pool.cache.unsubscribe(subscription)

    run(scenario)


def test_a_single_engine_is_not_asked_for_its_cache(tmp_path: Path) -> None:
    async def scenario(fake: FakeScheduler) -> None:
        watched = WatchedPool(fake.address)
        await watched.until(READY)
        watched.pool.open(GENERATION)
        await take(fake, Submit)
        subscription = watched.pool.cache.subscribe()
        waiting = asyncio.create_task(subscription.next())
        assert await taken(lambda: fake.take(WatchCache)) == WatchCache(wanted=True)
        waiting.cancel()
        watched.pool.cache.unsubscribe(subscription)
        # Nobody else follows it.
        assert await taken(lambda: fake.take(WatchCache)) == WatchCache(wanted=False)
        watched.pool.shut_down()

    with FakeScheduler(f"ipc://{tmp_path}/only.sock") as fake:
        asyncio.run(scenario(fake))


def test_an_engine_that_is_listed_no_longer_is_left_when_its_streams_are_over(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        stream, fake, _ = await cluster.started()
        other = cluster.other(fake)
        cluster.pool._take_addresses(frozenset([other.address]))
        assert {cluster.fake_of(cluster.pool.open(GENERATION)) for _ in range(4)} == {other}
        assert await end_with(fake, stream, [6]) == [6]
        cluster.pool.close(stream)
        await until(lambda: len(cluster.pool.engines) == 1)
        assert await taken(lambda: fake.take(Goodbye)) == Goodbye()
        # Nobody else is listed as READY: the one that is known is better than none.
        cluster.pool._take_addresses(frozenset(["ipc:///nobody.sock"]))
        assert cluster.fake_of(cluster.pool.open(GENERATION)) is other

    run(scenario)


def test_metrics_tell_the_engines_apart(run: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: Cluster) -> None:
        asking = asyncio.create_task(cluster.pool.metrics(PATIENCE_S))
        for fake in cluster.fakes:
            asked = await taken(lambda fake=fake: fake.take(GetMetrics))
            assert isinstance(asked, GetMetrics)
            fake.send(MetricValues(asked.number, {"model_name": "m", "engine": "0"}, []))
        labels = [answer.labels for answer in await asking]
        assert labels == [{"model_name": "m", "engine": fake.address} for fake in cluster.fakes]

    run(scenario)
