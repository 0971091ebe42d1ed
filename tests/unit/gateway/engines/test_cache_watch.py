"""Does every subscriber learn the same of the prefix cache, though one reads slowly, or the scheduler is replaced?"""

import asyncio

import pytest

from pagewire.ipc.cache_events import BlockRemoved, CacheEvent, CacheEvents, CacheFlushed, FlushCache, WatchCache
from scheduler_service.gateway.engines.cache_watch import CacheNews, CacheWatch
from scheduler_service.gateway.exceptions import EngineUnavailableError, GatewayDrainingError

MAX_EVENTS = 4


def events(*numbers: int) -> list[CacheEvent]:
    return [BlockRemoved(bytes([number])) for number in numbers]


class Scheduler:
    """What a scheduler is asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[WatchCache | FlushCache] = []
        self.is_there = True
        self.num_messages = 0
        self.watch = CacheWatch(self.take, MAX_EVENTS)

    def take(self, message: WatchCache | FlushCache) -> bool:
        if self.is_there:
            self.asked.append(message)
        return self.is_there

    def tell(self, *numbers: int, snapshot: bool = False) -> None:
        self.num_messages += 1
        self.watch.take_events(CacheEvents(self.num_messages, snapshot, events(*numbers)))


class Reader:
    """A subscriber that waits for its news."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.changed = asyncio.Event()
        self.subscription = scheduler.watch.subscribe(self.changed)

    async def next(self) -> CacheNews:
        while (news := self.subscription.take()) is None:
            self.changed.clear()
            await self.changed.wait()
        return news


async def reading(subscription: Reader) -> "asyncio.Task[CacheNews]":
    """A reader that waits."""
    task = asyncio.create_task(subscription.next())
    await asyncio.sleep(0)
    return task


async def begun(scheduler: Scheduler) -> Reader:
    """A subscription that has got its snapshot."""
    subscription = Reader(scheduler)
    task = await reading(subscription)
    scheduler.tell(1, snapshot=True)
    assert await task == CacheNews(True, events(1))
    scheduler.asked.clear()
    return subscription


def test_a_subscriber_gets_a_snapshot_then_every_event_together() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        subscription = Reader(scheduler)
        task = await reading(subscription)
        assert scheduler.asked == [WatchCache(wanted=True)]
        # These are from before the snapshot.
        scheduler.tell(9)
        scheduler.tell(1, snapshot=True)
        scheduler.tell(2)
        scheduler.tell(3)
        assert await task == CacheNews(True, events(1, 2, 3))
        scheduler.tell(4)
        assert await subscription.next() == CacheNews(False, events(4))

    asyncio.run(run())


def test_the_snapshot_of_a_second_subscriber_is_no_news_to_the_first() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        first = await begun(scheduler)
        second = await reading(Reader(scheduler))
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.tell(1, 2, snapshot=True)
        scheduler.tell(3)
        assert await second == CacheNews(True, events(1, 2, 3))
        assert await first.next() == CacheNews(False, events(3))

    asyncio.run(run())


def test_two_who_wait_ask_once() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        tasks = [await reading(Reader(scheduler)) for _ in range(2)]
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.tell(snapshot=True)
        assert await asyncio.gather(*tasks) == [CacheNews(True, [])] * 2

    asyncio.run(run())


def test_a_slow_subscriber_loses_what_waits_and_asks_again_when_it_reads() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        slow, quick = await begun(scheduler), await begun(scheduler)
        for number in range(MAX_EVENTS + 1):
            scheduler.tell(number)
            assert await quick.next() == CacheNews(False, events(number))
        assert scheduler.asked == []
        for number in range(100):
            scheduler.tell(number)
            await quick.next()
        task = await reading(slow)
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.tell(7, snapshot=True)
        assert await task == CacheNews(True, events(7))

    asyncio.run(run())


def test_everybody_starts_over_with_another_scheduler() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        subscription = await begun(scheduler)
        scheduler.tell(2)
        scheduler.is_there = False
        scheduler.watch.engine_is_lost()
        scheduler.is_there = True
        scheduler.watch.engine_is_ready()
        task = await reading(subscription)
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.num_messages = 0
        scheduler.tell(5, snapshot=True)
        assert await task == CacheNews(True, events(5))

    asyncio.run(run())


def test_a_subscriber_who_comes_before_the_scheduler_is_served_when_it_is_there() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        scheduler.is_there = False
        task = await reading(Reader(scheduler))
        scheduler.is_there = True
        scheduler.watch.engine_is_ready()
        await asyncio.sleep(0)
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.tell(snapshot=True)
        assert await task == CacheNews(True, [])

    asyncio.run(run())


def test_a_gap_in_the_messages_is_healed_by_a_snapshot() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        subscription = await begun(scheduler)
        scheduler.num_messages += 1
        scheduler.tell(3)
        task = await reading(subscription)
        assert scheduler.asked == [WatchCache(wanted=True)]
        scheduler.tell(2, 3, snapshot=True)
        assert await task == CacheNews(True, events(2, 3))

    asyncio.run(run())


def test_the_last_to_leave_ends_the_watch() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        first, second = await begun(scheduler), await begun(scheduler)
        scheduler.watch.unsubscribe(first.subscription)
        assert scheduler.asked == []
        scheduler.watch.unsubscribe(second.subscription)
        assert scheduler.asked == [WatchCache(wanted=False)]
        await begun(scheduler)

    asyncio.run(run())


def test_a_flush_waits_for_its_own_answer() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        first = asyncio.create_task(scheduler.watch.flush())
        second = asyncio.create_task(scheduler.watch.flush())
        await asyncio.sleep(0)
        assert scheduler.asked == [FlushCache(1), FlushCache(2)]
        for flush_id in (2, 1, 3):
            scheduler.watch.take_flushed(CacheFlushed(flush_id, 10 * flush_id))
        assert await asyncio.gather(first, second) == [10, 20]

    asyncio.run(run())


def test_a_flush_that_nobody_answers_ends() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        task = asyncio.create_task(scheduler.watch.flush())
        await asyncio.sleep(0)
        scheduler.watch.engine_is_lost()
        with pytest.raises(EngineUnavailableError):
            await task
        scheduler.is_there = False
        with pytest.raises(EngineUnavailableError):
            await scheduler.watch.flush()

    asyncio.run(run())


def test_closing_ends_those_who_wait() -> None:
    async def run() -> None:
        scheduler = Scheduler()
        subscription = await begun(scheduler)
        task = await reading(subscription)
        scheduler.watch.close(GatewayDrainingError())
        with pytest.raises(GatewayDrainingError):
            await task

    asyncio.run(run())
