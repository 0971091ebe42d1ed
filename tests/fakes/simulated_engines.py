"""Engines and gateways in made-up time: real schedulers and real routing, workers that only take time.

What the gateways know is as old as it would be: loads are told three times a second, events and requests are on
their way for a millisecond.
"""

import heapq
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pagewire.ipc.requests import StepTokens
from pagewire.ipc.steps import StepBatch, StepOutput
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.scheduler import Scheduler
from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.engines.engine_load import LoadEstimate, Share
from scheduler_service.gateway.engines.prefix_map import PrefixMap
from scheduler_service.gateway.engines.routing import Candidate, RoutingPolicy, make_router
from tests.fakes.bare_gateway import make_submit

BLOCK_SIZE = 16
STEP_S, TOKEN_S, SEQUENCE_S = 0.015, 0.00025, 0.0004
LATENCY_S = 0.001
STATUS_PERIOD_S = 0.3


class Clock:
    """Runs what is due, in order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now_s + seconds, self._count, action))

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._due)
            action()


@dataclass
class Asked:
    """A request, and what becomes of it."""

    prompt: list[int]
    max_tokens: int
    then: Callable[["Asked"], None]
    sent_s: float = 0.0
    share: Share | None = None
    output: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0


class SimulatedEngine:
    """A scheduler and the time that its steps take, `speed` times as fast and as large as usual.

    Attributes:
        num_tokens: that it computed.
        sequence_s: time that sequences were there, summed over them.
    """

    def __init__(self, clock: Clock, name: str, num_blocks: int, speed: int = 1) -> None:
        self.name = name
        self.gateways: dict[bytes, SimulatedGateway] = {}
        self.num_tokens = 0
        self.sequence_s = 0.0
        self._clock, self._speed = clock, speed
        config = SchedulerConfig(
            block_size=BLOCK_SIZE,
            max_num_seqs=32 * speed,
            max_num_batched_tokens=512 * speed,
            async_scheduling=False,
        )
        metrics = EngineMetrics(config.max_num_seqs, 4096, clock=lambda: clock.now_s)
        self.scheduler = Scheduler(config, num_blocks * speed, frozenset(), metrics)
        self._is_busy = False
        self._asked: dict[tuple[bytes, int], Asked] = {}
        self._counted_s = 0.0
        clock.after(random.Random(name).random(), self._tell_load)

    def submit(self, gateway: bytes, number: int, asked: Asked) -> None:
        self.count()
        submit = make_submit(number, asked.prompt, max_tokens=asked.max_tokens, request_id=f"{gateway!r}{number}")
        self._asked[gateway, number] = asked
        self.scheduler.add(gateway, submit, len(asked.prompt) + asked.max_tokens)
        self._begin_step()

    def count(self) -> None:
        """Bring `sequence_s` up to date."""
        load = self.scheduler.load
        self.sequence_s += (load.num_running + load.num_waiting) * (self._clock.now_s - self._counted_s)
        self._counted_s = self._clock.now_s

    def tell_events(self) -> None:
        for name, message in self.scheduler.journal.take_messages():
            prefixes, news = self.gateways[name].prefixes, CacheNews(message.is_snapshot, message.events)
            self._clock.after(LATENCY_S, lambda prefixes=prefixes, news=news: prefixes.take(self.name, news))

    def _tell_load(self) -> None:
        for gateway in self.gateways.values():
            gateway.loads[self.name].take(self.scheduler.load)
        self._clock.after(STATUS_PERIOD_S, self._tell_load)

    def _begin_step(self) -> None:
        if self._is_busy:
            return
        batch = self.scheduler.schedule()
        self._tell()
        if batch is not None:
            self._is_busy = True
            counts = np.frombuffer(batch.num_tokens, dtype="<i4")
            self.num_tokens += int(counts.sum())
            seconds = STEP_S + TOKEN_S * int(counts.sum()) + SEQUENCE_S * len(counts)
            self._clock.after(seconds / self._speed, lambda: self._end_step(batch))

    def _end_step(self, batch: StepBatch) -> None:
        self.count()
        num_sampled = batch.sampled.count(1)
        token_ids = np.full(num_sampled, 7, dtype=np.int32).tobytes()
        self.scheduler.update(StepOutput(batch.step_id, token_ids, bytes(num_sampled)))
        self._is_busy = False
        self._tell()
        self._begin_step()

    def _tell(self) -> None:
        for gateway, message in self.scheduler.take_outputs():
            self._tell_tokens(gateway, message)
        self.tell_events()

    def _tell_tokens(self, gateway: bytes, message: StepTokens) -> None:
        token_ids = np.frombuffer(message.token_ids, dtype="<i4").tolist()
        for number, token_id in zip(np.frombuffer(message.stream_ids, dtype="<u4").tolist(), token_ids, strict=True):
            asked = self._asked[gateway, number]
            asked.output.append(token_id)
            assert asked.share is not None
            asked.share.note_output()
        for ended in message.ended:
            asked = self._asked.pop((gateway, ended.stream_id))
            asked.num_cached_tokens = ended.num_cached_tokens
            assert asked.share is not None
            asked.share.end()
            asked.then(asked)


class SimulatedGateway:
    """Routes as a gateway does."""

    def __init__(
        self, clock: Clock, name: bytes, engines: Sequence[SimulatedEngine], policy: RoutingPolicy, seed: int
    ) -> None:
        self.prefixes = PrefixMap()
        self.loads = {engine.name: LoadEstimate() for engine in engines}
        self._clock, self._name = clock, name
        self._router = make_router(policy, random.Random(seed))
        self._engines = {engine.name: engine for engine in engines}
        self._num_sent = 0
        for engine in engines:
            engine.gateways[name] = self
            engine.scheduler.watch_cache(name)
            engine.tell_events()

    def ask(self, asked: Asked) -> None:
        self._num_sent += 1
        token_ids, now_s, number = array("i", asked.prompt), self._clock.now_s, self._num_sent
        cached = self.prefixes.match(token_ids, "", now_s)
        candidates = [Candidate(name, cached.get(name, 0), self.loads[name].now) for name in self._engines]
        chosen = self._router.choose(candidates, len(token_ids))
        self.prefixes.expect(chosen, token_ids, "", BLOCK_SIZE, now_s)
        asked.sent_s, asked.share = now_s, self.loads[chosen].enter(len(token_ids) - cached.get(chosen, 0))
        self._clock.after(LATENCY_S, lambda: self._engines[chosen].submit(self._name, number, asked))
