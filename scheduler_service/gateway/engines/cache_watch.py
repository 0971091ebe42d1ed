"""What is in one scheduler's prefix cache? Passes its events on to those who subscribe, and asks it to flush the cache.

Each subscriber first gets a snapshot, then every event in order. One that reads too slowly loses what waits for it and
gets another snapshot instead, once it reads again; so does everybody when the scheduler is replaced. While nobody
subscribes the scheduler sends nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagewire.ipc.cache_events import CacheEvent, CacheEvents, CacheFlushed, FlushCache, WatchCache
from scheduler_service.gateway.exceptions import EngineUnavailableError, RequestError

MAX_WAITING_EVENTS = 1 << 16
"""Events that may wait for one subscriber, beside those of a snapshot."""


@dataclass(frozen=True, slots=True)
class CacheNews:
    """Events in order. A snapshot makes void what was told before, and lists all that is cached."""

    is_snapshot: bool
    events: Sequence[CacheEvent]


class CacheSubscription:
    """One subscriber's view. Give it back with `CacheWatch.unsubscribe`.

    Args:
        ask: asks for a snapshot.
        changed: set whenever `take` may have something else to say.
        max_waiting_events: that may wait here.
    """

    def __init__(self, ask: Callable[[], None], changed: asyncio.Event, max_waiting_events: int) -> None:
        self._ask = ask
        self._max_events = max_waiting_events
        self._room = 0
        self._events: list[CacheEvent] = []
        self._is_snapshot = False
        self._lacks_snapshot = True
        self._error: RequestError | None = None
        self._changed = changed

    def take(self) -> CacheNews | None:
        """All news that is here.

        Raises:
            RequestError: there will be none any more.
        """
        if self._error is not None:
            raise self._error
        if self._events or self._is_snapshot:
            news = CacheNews(self._is_snapshot, self._events)
            self._events, self._is_snapshot, self._room = [], False, self._max_events
            return news
        if self._lacks_snapshot:
            self._ask()
        return None

    def push(self, message: CacheEvents) -> None:
        """The scheduler told what is cached, or what changed."""
        if message.is_snapshot != self._lacks_snapshot:
            # Another's snapshot, or events that came before one's own.
            return
        if message.is_snapshot:
            self._lacks_snapshot = False
            self._events, self._is_snapshot, self._room = list(message.events), True, self._max_events
        elif len(message.events) <= self._room:
            self._events += message.events
            self._room -= len(message.events)
        else:
            self.restart()
        self._changed.set()

    def restart(self) -> None:
        """What was told, or waits, holds no longer: there will be a snapshot once the subscriber asks for more."""
        self._events, self._is_snapshot, self._lacks_snapshot = [], False, True
        self._changed.set()

    def end(self, error: RequestError) -> None:
        """There will be no more."""
        self._error = error
        self._changed.set()


class CacheWatch:
    """The gateway's side of the conversation about the prefix cache.

    Args:
        send: sends a message to the scheduler; False: there is none.
        max_waiting_events: for one subscriber.
    """

    def __init__(
        self, send: Callable[[WatchCache | FlushCache], bool], max_waiting_events: int = MAX_WAITING_EVENTS
    ) -> None:
        self._send = send
        self._max_events = max_waiting_events
        self._subscriptions: set[CacheSubscription] = set()
        self._num_messages = 0
        self._is_asked = False
        self._flushes: dict[int, asyncio.Future[int]] = {}
        self._num_flushes = 0

    def subscribe(self, changed: asyncio.Event) -> CacheSubscription:
        """Begin to follow the cache; `changed` is set whenever there is something to take."""
        subscription = CacheSubscription(self._ask, changed, self._max_events)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: CacheSubscription) -> None:
        """Follow it no longer; the last one makes the scheduler stop telling."""
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._is_asked = False
            self._send(WatchCache(wanted=False))

    async def flush(self) -> int:
        """Have the scheduler share nothing any more that is cached now; how many blocks are they?

        Raises:
            EngineUnavailableError: there is no scheduler, or it was lost before it answered.
        """
        self._num_flushes += 1
        flush_id = self._num_flushes
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self._send(FlushCache(flush_id)):
            raise EngineUnavailableError("the scheduler does not take requests now")
        self._flushes[flush_id] = answer
        try:
            return await answer
        finally:
            del self._flushes[flush_id]

    def take_events(self, message: CacheEvents) -> None:
        """The scheduler told what is cached, or what changed."""
        if message.is_snapshot:
            self._is_asked = False
        elif message.number != self._num_messages + 1:
            self.engine_is_ready()
            return
        self._num_messages = message.number
        for subscription in self._subscriptions:
            subscription.push(message)

    def take_flushed(self, message: CacheFlushed) -> None:
        """The scheduler flushed its cache."""
        answer = self._flushes.get(message.flush_id)
        if answer is not None and not answer.done():
            answer.set_result(message.num_blocks)

    def engine_is_ready(self) -> None:
        """A scheduler is there that may not know who watches: everybody starts over."""
        self._is_asked = False
        for subscription in self._subscriptions:
            subscription.restart()

    def engine_is_lost(self) -> None:
        """Nobody will answer what was asked."""
        for answer in self._flushes.values():
            if not answer.done():
                answer.set_exception(EngineUnavailableError("the scheduler was lost before it answered"))

    def close(self, error: RequestError) -> None:
        """End all subscriptions with this error; nobody will answer what was asked."""
        self.engine_is_lost()
        for subscription in self._subscriptions:
            subscription.end(error)

    def _ask(self) -> None:
        """Ask for a snapshot, once for all who need one now."""
        if not self._is_asked:
            self._is_asked = self._send(WatchCache(wanted=True))
