"""What is in the engines' prefix caches together? For those who route by what the engines of a gateway hold.

Block names are each scheduler's own, so that no two engines mean the same one. A snapshot of one engine makes void what
was told of that engine alone.
"""

import asyncio
from dataclasses import dataclass, field

from pagewire.ipc.cache_events import BlockRemoved, BlockStored, CacheCleared, CacheEvent
from scheduler_service.gateway.engines.cache_watch import CacheNews, CacheSubscription
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.exceptions import EngineUnavailableError, RequestError


@dataclass(slots=True)
class _Part:
    """What one engine tells one subscriber, and the blocks that it has told of."""

    subscription: CacheSubscription
    names: dict[bytes, None] = field(default_factory=dict)

    def take(self) -> CacheNews | None:
        """The engine's news; a snapshot begins with the removal of what was told before."""
        news = self.subscription.take()
        if news is None:
            return None
        events: list[CacheEvent] = list(self.forget()) if news.is_snapshot else []
        for event in news.events:
            if isinstance(event, CacheCleared):
                events += self.forget()
                continue
            if isinstance(event, BlockStored):
                self.names[event.block_hash] = None
            else:
                self.names.pop(event.block_hash, None)
            events.append(event)
        return CacheNews(news.is_snapshot, events)

    def forget(self) -> list[BlockRemoved]:
        """Nothing of what was told holds any longer."""
        names, self.names = self.names, {}
        return [BlockRemoved(name) for name in names]


class UnionSubscription:
    """One subscriber's view. Give it back with `CacheUnion.unsubscribe`."""

    def __init__(self) -> None:
        self.parts: dict[Engine, _Part] = {}
        self._removed: list[CacheEvent] = []
        self._lacks_snapshot = True
        self._error: RequestError | None = None
        self._changed = asyncio.Event()

    def add(self, engine: Engine) -> None:
        """Follow this engine too."""
        self.parts[engine] = _Part(engine.cache.subscribe(self._changed))
        self._changed.set()

    def remove(self, engine: Engine) -> None:
        """The engine is gone, and what it held."""
        part = self.parts.pop(engine)
        engine.cache.unsubscribe(part.subscription)
        self._removed += part.forget()
        self._changed.set()

    def end(self, error: RequestError) -> None:
        """There will be no more."""
        self._error = error
        self._changed.set()

    async def next(self) -> CacheNews:
        """Wait for news and take some of it. The first is a snapshot.

        Raises:
            RequestError: there will be none.
        """
        while True:
            self._changed.clear()
            if self._error is not None:
                raise self._error
            if self._removed:
                removed, self._removed = self._removed, []
                return CacheNews(is_snapshot=False, events=removed)
            for engine, part in list(self.parts.items()):
                news = part.take()
                if news is not None:
                    # The others have their turn first now.
                    self.parts[engine] = self.parts.pop(engine)
                    is_first, self._lacks_snapshot = self._lacks_snapshot, False
                    return CacheNews(is_first, news.events)
            await self._changed.wait()


class CacheUnion:
    """The caches of all engines as one."""

    def __init__(self) -> None:
        self._engines: dict[Engine, None] = {}
        self._subscriptions: set[UnionSubscription] = set()

    def add(self, engine: Engine) -> None:
        """An engine is there."""
        self._engines[engine] = None
        for subscription in self._subscriptions:
            subscription.add(engine)

    def remove(self, engine: Engine) -> None:
        """An engine is gone."""
        del self._engines[engine]
        for subscription in self._subscriptions:
            subscription.remove(engine)

    def subscribe(self) -> UnionSubscription:
        """Begin to follow the caches."""
        subscription = UnionSubscription()
        for engine in self._engines:
            subscription.add(engine)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: UnionSubscription) -> None:
        """Follow them no longer."""
        self._subscriptions.discard(subscription)
        for engine, part in subscription.parts.items():
            engine.cache.unsubscribe(part.subscription)

    async def flush(self) -> int:
        """Have all engines share nothing any more that is cached now; how many blocks are they?

        Raises:
            EngineUnavailableError: there is no scheduler, or one was lost before it answered.
        """
        engines = [engine for engine in self._engines if engine.is_ready]
        if not engines:
            raise EngineUnavailableError("the scheduler does not take requests now")
        return sum(await asyncio.gather(*(engine.cache.flush() for engine in engines)))

    def close(self, error: RequestError) -> None:
        """End all subscriptions with this error."""
        for subscription in self._subscriptions:
            subscription.end(error)
