"""Users at one engine in full detail: what they see, and what the engine has to tell its gateways."""

import heapq
from dataclasses import dataclass, field

import msgspec
import numpy as np

from benchmarks.scaling.engine import DetailedEngine, Life
from benchmarks.scaling.shapes import ModelShape
from benchmarks.scaling.step_time import StepTimeModel
from benchmarks.scaling.workload import Turn, Users
from pagewire.ipc.cache_events import CacheEvents
from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.requests import GatewayMessage, StepTokens
from scheduler_service.core.config import SchedulerConfig

BLOCK_SIZE = 16
_MEMORY_BYTES = 68e9
_ME = new_incarnation()


@dataclass(frozen=True, slots=True)
class EngineSize:
    """What is served, and how much of it at once."""

    shape: ModelShape
    max_num_seqs: int
    max_num_batched_tokens: int = 2048

    @property
    def num_blocks(self) -> int:
        """KV blocks of an H100 with 80 GB."""
        return self.shape.num_kv_blocks(_MEMORY_BYTES, BLOCK_SIZE)

    def config(self) -> SchedulerConfig:
        """Of its scheduler."""
        return SchedulerConfig(
            block_size=BLOCK_SIZE, max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
        )


@dataclass(slots=True)
class Told:
    """What went to the gateways of one engine."""

    num_messages: int = 0
    num_bytes: int = 0
    num_cache_messages: int = 0
    num_cache_bytes: int = 0
    num_stored: int = 0
    num_removed: int = 0
    cache_messages: list[CacheEvents] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run after its warm-up: so many `seconds`, with these lives that began in them."""

    seconds: float
    num_tokens: int
    num_steps: int
    busy_s: float
    mean_running: float
    mean_open: float
    lives: list[Life]
    told: Told


def run_users(
    model: StepTimeModel,
    size: EngineSize,
    users: Users,
    *,
    num_gateways: int = 1,
    warm_up_s: float,
    seconds: float,
    keeps_events: bool = False,
) -> Outcome:
    """Let users ask one engine, each by the next of the gateways in turn.

    Args:
        keeps_events: whether a gateway watches the cache, and what it is told is kept.
    """
    run = _Run(model, size, users, num_gateways, keeps_events)
    run.until(warm_up_s)
    engine = run.engine
    engine.lives = {number: life for number, life in engine.lives.items() if life.ended_s is None}
    known, run.told = set(engine.lives), Told()
    before = engine.num_tokens, engine.gpu.num_steps, engine.gpu.busy_s
    run.reset_means()
    run.until(warm_up_s + seconds)
    return Outcome(
        seconds,
        engine.num_tokens - before[0],
        engine.gpu.num_steps - before[1],
        engine.gpu.busy_s - before[2],
        run.running_s / seconds,
        run.open_s / seconds,
        [life for number, life in engine.lives.items() if number not in known],
        run.told,
    )


class _Run:
    """One engine and its users, at one moment."""

    def __init__(
        self, model: StepTimeModel, size: EngineSize, users: Users, num_gateways: int, keeps_events: bool
    ) -> None:
        self.engine = DetailedEngine(model, size.shape, size.config(), size.num_blocks, self._tell, self._tell_cache)
        self.told = Told()
        self.running_s = self.open_s = 0.0
        self._users = users
        self._gateways = [new_incarnation() for _ in range(num_gateways)]
        self._codec: Codec[GatewayMessage] = Codec(GatewayMessage)
        self._random = np.random.default_rng(0)
        self._vocab_size = size.shape.vocab_size
        self._texts: dict[int, np.ndarray] = {}
        self._now_s = 0.0
        self._asks = [(users.think_s(), user) for user in range(users.num_users)]
        heapq.heapify(self._asks)
        self._turns: dict[int, tuple[int, Turn]] = {}
        self._keeps_events = keeps_events
        if keeps_events:
            self.engine.watch_cache(self._gateways[0])

    def reset_means(self) -> None:
        """Begin to count anew."""
        self.running_s = self.open_s = 0.0

    def until(self, end_s: float) -> None:
        """Go on until this time."""
        while True:
            ask_s = self._asks[0][0] if self._asks else np.inf
            step_s = self.engine.next_end_s
            next_s = min(ask_s, step_s if step_s is not None else np.inf)
            if next_s > end_s:
                break
            self._pass(next_s)
            if next_s == ask_s:
                self._ask(heapq.heappop(self._asks)[1])
            else:
                for number in self.engine.finish_step():
                    self._answered(number)
        self._pass(end_s)

    def _pass(self, next_s: float) -> None:
        passed_s, self._now_s = next_s - self._now_s, next_s
        load = self.engine.load
        self.running_s += passed_s * load.num_running
        self.open_s += passed_s * (load.num_running + load.num_waiting)

    def _ask(self, user: int) -> None:
        turn = self._users.ask(user)
        history = self._texts.pop(user, None) if turn.num_history else None
        asked = self._random.integers(0, self._vocab_size, turn.num_asked, dtype=np.int32)
        prompt = asked if history is None else np.concatenate((history, asked))
        number = self.engine.submit(self._gateways[user % len(self._gateways)], prompt, turn.num_answered, self._now_s)
        self._turns[number] = user, turn
        if self._users.habits.goes_on:
            self._texts[user] = prompt

    def _answered(self, number: int) -> None:
        user, turn = self._turns.pop(number)
        if self._users.habits.goes_on:
            answer = np.full(turn.num_answered, self.engine.gpu.token, dtype=np.int32)
            self._texts[user] = np.concatenate((self._texts[user], answer))
        heapq.heappush(self._asks, (self._now_s + self._users.think_s(), user))

    def _tell(self, gateway: bytes, message: StepTokens) -> None:
        self.told.num_messages += 1
        self.told.num_bytes += self._size(message)

    def _tell_cache(self, gateway: bytes, message: CacheEvents) -> None:
        told = self.told
        told.num_cache_messages += 1
        told.num_cache_bytes += self._size(message)
        num_stored = sum(hasattr(event, "token_ids") for event in message.events)
        told.num_stored += num_stored
        told.num_removed += len(message.events) - num_stored
        told.cache_messages.append(message)

    def _size(self, message: msgspec.Struct) -> int:
        return len(self._codec.encode(message, _ME, _ME))
