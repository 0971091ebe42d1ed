"""Which engine gets a stream? Keeps what a routing policy needs to know of each: its load, and what it has cached."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler_service.gateway.engines.cache_watch import CacheSubscription
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.engines.engine_load import LoadEstimate, Share
from scheduler_service.gateway.engines.prefix_map import PrefixMap
from scheduler_service.gateway.engines.routing import Candidate, RoutingPolicy, make_router
from scheduler_service.gateway.stream import Stream


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine for a stream, which is thought to have so many tokens of it cached already."""

    engine: Engine
    num_cached_tokens: int = 0


class Chooser:
    """Follows the engines that are there. A single one is not asked for its cache, as there is nothing to choose."""

    def __init__(self, policy: RoutingPolicy = RoutingPolicy.PREFIX) -> None:
        self._policy = policy
        self._router = make_router(policy)
        self._prefixes = PrefixMap()
        self._loads: dict[Engine, LoadEstimate] = {}
        self._caches: dict[Engine, CacheSubscription] = {}
        self._news = asyncio.Event()
        self._shares: dict[Stream, Share] = {}
        self._without_output: dict[Stream, None] = {}

    def add(self, engine: Engine) -> None:
        """An engine is there."""
        self._loads[engine] = LoadEstimate()
        self._follow_caches()

    def remove(self, engine: Engine) -> None:
        """An engine is gone."""
        del self._loads[engine]
        self._ignore_cache(engine)
        self._follow_caches()

    def note_load(self, engine: Engine) -> None:
        """Its scheduler has told its load."""
        self._loads[engine].take(engine.status.load)

    def choose(self, engines: Sequence[Engine], stream: Stream) -> Choice:
        """One of the engines, which are READY."""
        if len(engines) == 1 and not self._follows_caches:
            return Choice(engines[0])
        self._take_news()
        token_ids, cached = stream.sequence_ids, dict[str, int]()
        if self._policy is RoutingPolicy.PREFIX:
            cached = self._prefixes.match(token_ids, stream.generation.cache_salt, time.monotonic())
        by_address = {engine.address: engine for engine in engines}
        candidates = [
            Candidate(address, cached.get(address, 0), self._loads[engine].now)
            for address, engine in by_address.items()
        ]
        chosen = self._router.choose(candidates, len(token_ids))
        return Choice(by_address[chosen], cached.get(chosen, 0))

    def note_placed(self, stream: Stream, choice: Choice) -> None:
        """The engine has got the stream."""
        engine = choice.engine
        if self._follows_caches and engine.status.limits is not None:
            salt, block_size = stream.generation.cache_salt, engine.status.limits.block_size
            self._prefixes.expect(engine.address, stream.sequence_ids, salt, block_size, time.monotonic())
        self._shares[stream] = self._loads[engine].enter(stream.num_tokens - choice.num_cached_tokens)
        self._without_output[stream] = None

    def note_left(self, stream: Stream) -> None:
        """No engine has the stream any more."""
        self._shares.pop(stream).end()
        self._without_output.pop(stream, None)

    def catch_up(self) -> None:
        """Take what has become known since the last time; called now and then, so that there is never much."""
        for stream in [stream for stream in self._without_output if stream.has_got_further]:
            self._shares[stream].note_output()
            del self._without_output[stream]
        for stream, share in self._shares.items():
            # Its caller may take long to read what is left.
            if stream.is_finished:
                share.end()
        self._take_news()

    def _take_news(self) -> None:
        if self._news.is_set():
            self._news.clear()
            for engine, cache in self._caches.items():
                while (news := cache.take()) is not None:
                    self._prefixes.take(engine.address, news)

    def _follow_caches(self) -> None:
        """Of several engines, follow the cache of each; a single one is spared that."""
        if not self._follows_caches:
            for engine in list(self._caches):
                self._ignore_cache(engine)
            return
        for engine in self._loads.keys() - self._caches.keys():
            self._caches[engine] = engine.cache.subscribe(self._news)
            self._news.set()

    def _ignore_cache(self, engine: Engine) -> None:
        if engine in self._caches:
            engine.cache.unsubscribe(self._caches.pop(engine))
            self._prefixes.forget(engine.address)

    @property
    def _follows_caches(self) -> bool:
        return self._policy is RoutingPolicy.PREFIX and len(self._loads) > 1
