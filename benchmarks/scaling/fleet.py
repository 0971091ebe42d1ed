"""Users, gateways and engines, as many as a large installation has: who sends what where, and what comes of it.

Engines are the servers of server.py. Each tells its load once in a period, at a moment of its own; a gateway knows what
it has sent and what has ended of it, and of all else the engine's last word. Requests come to gateways at random, as
they do through a service that balances. What is cached becomes known to gateways some time after it is.
"""

import heapq
from dataclasses import dataclass
from random import Random

import numpy as np

from benchmarks.scaling.detail import EngineSize
from benchmarks.scaling.policies import Beliefs, Chooser, Policy
from benchmarks.scaling.server import EngineServer, StepCosts, Visit
from benchmarks.scaling.workload import Habits, Users

_SAMPLE_S = 0.5
# So far engines may be behind, and with them users who wait for their answers.
_TICK_S = 0.1
_START_S = 4.0


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """One simulated installation.

    Attributes:
        engines_per_gateway: None: every gateway knows every engine.
        users_stay: whether a user's requests all come to one gateway.
        events_lag_s: how late gateways know what is cached; None: they never do, beside what they sent themselves.
    """

    num_engines: int
    num_gateways: int
    users_per_engine: int
    size: EngineSize
    habits: Habits
    policy: Policy
    status_period_s: float = 0.3
    events_lag_s: float | None = 0.05
    engines_per_gateway: int | None = None
    users_stay: bool = False
    warm_up_s: float = 30.0
    seconds: float = 20.0
    seed: int = 1


@dataclass(slots=True)
class FleetOutcome:
    """What was measured after the warm-up. Loads are streams that are open at an engine, sampled."""

    tokens_per_s: float = 0.0
    requests_per_s: float = 0.0
    mean_open: float = 0.0
    cached_share: float = 0.0
    first_token_p50_s: float = 0.0
    first_token_p99_s: float = 0.0
    request_mean_s: float = 0.0
    token_p99_s: float = 0.0
    imbalance: float = 0.0
    spread: float = 0.0
    steps_per_s: float = 0.0
    gateway_tokens_most_over_mean: float = 0.0
    num_requests: int = 0


class Fleet:
    """The installation at one moment.

    Attributes:
        known: the engines that each gateway knows; None: all know all.
    """

    def __init__(self, config: FleetConfig, costs: StepCosts) -> None:
        self._config = config
        self._users = Users(config.habits, config.num_engines * config.users_per_engine, config.seed)
        self._random = Random(config.seed)
        self._chooser = Chooser(config.policy, self._random)
        count = config.num_engines
        self._engines = [EngineServer(costs, config.size) for _ in range(count)]
        # [2, gateway, engine] sequences and tokens to compute: the gateway's own, and what the engine's last word says
        # of the others', as LoadEstimate in scheduler_service/gateway/engines/engine_load.py.
        self._own = np.zeros((2, config.num_gateways, count))
        self._others = np.zeros((2, config.num_gateways, count))
        self.known = self._subsets()
        # By conversation: the engine that has it, who sent it there, and when that is known.
        self._homes: dict[int, tuple[int, int, float]] = {}
        # Who does not think begins within the first seconds, not at once with all others.
        start_s = 0.0 if config.habits.think_s else _START_S
        self._asks = [
            (self._users.think_s() + start_s * self._random.random(), user) for user in range(self._users.num_users)
        ]
        heapq.heapify(self._asks)
        self._ticks = [(self._random.random() * _TICK_S, engine) for engine in range(count)]
        heapq.heapify(self._ticks)
        self._next_status_s = [self._random.random() * config.status_period_s for _ in range(count)]
        # Of the time that is measured.
        self._started: list[Visit] = []
        self._ended: list[Visit] = []
        self._gateway_tokens = np.zeros(config.num_gateways)
        self._measures_from_s = config.warm_up_s

    def run(self) -> FleetOutcome:
        """Simulate."""
        config, outcome = self._config, FleetOutcome()
        end_s = config.warm_up_s + config.seconds
        samples: list[list[int]] = []
        before = (0.0, 0.0)
        num_samples = round(end_s / _SAMPLE_S)
        for number in range(1, num_samples + 1):
            now_s = number * _SAMPLE_S
            self._until(now_s)
            if now_s == config.warm_up_s:
                before = self._counts()
            elif now_s > config.warm_up_s:
                samples.append([engine.num_open for engine in self._engines])
        after = self._counts()
        outcome.tokens_per_s = (after[0] - before[0]) / config.seconds
        outcome.steps_per_s = (after[1] - before[1]) / config.seconds / config.num_engines
        self._summarise(outcome, np.array(samples))
        return outcome

    def _counts(self) -> tuple[float, float]:
        return sum(engine.num_tokens for engine in self._engines), sum(engine.num_steps for engine in self._engines)

    def _summarise(self, outcome: FleetOutcome, samples: np.ndarray) -> None:
        """samples: [num_samples, num_engines] open streams."""
        started, ended, config = self._started, self._ended, self._config
        firsts = np.array([visit.first_s - visit.arrived_s for visit in started])
        per_token = np.array([(visit.ended_s - visit.first_s) / max(1, visit.turn.num_answered - 1) for visit in ended])
        outcome.num_requests = len(ended)
        outcome.requests_per_s = len(ended) / config.seconds
        outcome.mean_open = float(samples.sum(axis=1).mean())
        outcome.cached_share = sum(v.num_cached for v in started) / sum(v.turn.num_prompt for v in started)
        outcome.first_token_p50_s, outcome.first_token_p99_s = np.percentile(firsts, (50, 99)).tolist()
        outcome.request_mean_s = float(np.mean([visit.ended_s - visit.arrived_s for visit in ended]))
        outcome.token_p99_s = float(np.percentile(per_token, 99))
        by_engine = samples.mean(axis=0)
        outcome.imbalance = float(by_engine.max() / by_engine.mean())
        outcome.spread = float((samples.std(axis=1) / samples.mean(axis=1)).mean())
        outcome.gateway_tokens_most_over_mean = float(self._gateway_tokens.max() / self._gateway_tokens.mean())

    def _subsets(self) -> list[np.ndarray] | None:
        """The engines that each gateway knows: as many gateways for each engine, and no two gateways with the same."""
        config = self._config
        if config.engines_per_gateway is None:
            return None
        dealt = np.random.default_rng(config.seed)
        wanted = config.num_gateways * config.engines_per_gateway
        rounds = [dealt.permutation(config.num_engines) for _ in range(-(-wanted // config.num_engines))]
        hand = np.concatenate(rounds)[:wanted].reshape(config.num_gateways, config.engines_per_gateway)
        return [np.unique(row) for row in hand]

    # ---- events ---------------------------------------------------------------------------------------------------

    def _until(self, end_s: float) -> None:
        """Whatever happens until this time, in order."""
        while True:
            is_tick = not self._asks or self._ticks[0][0] <= self._asks[0][0]
            at_s, number = self._ticks[0] if is_tick else self._asks[0]
            if at_s > end_s:
                return
            if is_tick:
                heapq.heapreplace(self._ticks, (at_s + _TICK_S, number))
                self._advance(number, at_s)
                if at_s >= self._next_status_s[number]:
                    self._next_status_s[number] += self._config.status_period_s
                    self._tell_status(number)
            else:
                heapq.heappop(self._asks)
                self._ask(number, at_s)

    def _tell_status(self, number: int) -> None:
        engine = self._engines[number]
        for kind, total in enumerate((engine.num_open, engine.num_to_compute)):
            self._others[kind, :, number] = np.maximum(total - self._own[kind, :, number], 0)

    def _ask(self, user: int, now_s: float) -> None:
        config = self._config
        turn = self._users.ask(user)
        gateway = user % config.num_gateways if config.users_stay else self._random.randrange(config.num_gateways)
        number, cached = self._choose(gateway, turn.conversation, now_s)
        self._advance(number, now_s)
        visit = Visit(user, gateway, turn, now_s, num_believed=turn.num_prompt - cached)
        self._own[0, gateway, number] += 1
        self._own[1, gateway, number] += visit.num_believed
        self._engines[number].arrive(visit)
        if config.habits.goes_on:
            lag_s = config.events_lag_s if config.events_lag_s is not None else np.inf
            self._homes[turn.conversation] = number, gateway, now_s + lag_s

    def _choose(self, gateway: int, conversation: int, now_s: float) -> tuple[int, int]:
        """The engine for a prompt, and how much of it the gateway believes to be cached there."""
        sequences, tokens = self._own[:, gateway] + self._others[:, gateway]
        home = self._homes.get(conversation)
        holders: dict[int, int] = {}
        if home is not None and (home[2] <= now_s or home[1] == gateway):
            holders[home[0]] = self._engines[home[0]].cached_tokens(conversation)
        if self.known is None:
            chosen = self._chooser.choose(Beliefs(sequences, tokens), list(holders.items()), conversation)
            return chosen, holders.get(chosen, 0)
        choices = self.known[gateway]
        known = [
            (int(np.searchsorted(choices, engine)), cached) for engine, cached in holders.items() if engine in choices
        ]
        place = self._chooser.choose(Beliefs(sequences[choices], tokens[choices]), known, conversation)
        chosen = int(choices[place])
        return chosen, holders.get(chosen, 0)

    def _advance(self, number: int, now_s: float) -> None:
        """Let an engine come to this time, and its users take their answers."""
        engine = self._engines[number]
        engine.advance(now_s)
        for visit in engine.started:
            self._own[1, visit.gateway, number] -= visit.num_believed
            if visit.first_s >= self._measures_from_s:
                self._started.append(visit)
        engine.started.clear()
        for visit in engine.ended:
            self._own[0, visit.gateway, number] -= 1
            # Nobody asks in the past.
            heapq.heappush(self._asks, (max(now_s, visit.ended_s + self._users.think_s()), visit.user))
            if visit.ended_s >= self._measures_from_s:
                self._ended.append(visit)
                self._gateway_tokens[visit.gateway] += visit.turn.num_answered
        engine.ended.clear()
