"""How well does the cheap engine agree with the detailed one? The same users at both."""

import heapq
from dataclasses import dataclass

import numpy as np

from benchmarks.scaling.capacity import EngineRates
from benchmarks.scaling.detail import EngineSize, run_users
from benchmarks.scaling.server import EngineServer, StepCosts, Visit
from benchmarks.scaling.shapes import QWEN3_0_6B, QWEN3_8B
from benchmarks.scaling.step_time import StepTimeModel
from benchmarks.scaling.workload import CHATS, QUESTIONS, Habits, Users


@dataclass(frozen=True, slots=True)
class Case:
    """So many users at an engine."""

    name: str
    size: EngineSize
    habits: Habits
    num_users: int
    warm_up_s: float = 40.0
    seconds: float = 30.0
    is_planned_for: bool = False
    """Whether fleets are planned for this load of each engine."""


CASES = (
    Case("0.6B, 64 streams", EngineSize(QWEN3_0_6B, 1024), QUESTIONS, 64, 5.0, 10.0),
    Case("0.6B, 256 streams", EngineSize(QWEN3_0_6B, 1024), QUESTIONS, 256, 8.0, 10.0),
    Case("0.6B, 1,000 streams", EngineSize(QWEN3_0_6B, 1024), QUESTIONS, 1000, 12.0, 12.0, is_planned_for=True),
    Case("8B, 128 streams", EngineSize(QWEN3_8B, 256), QUESTIONS, 128, 10.0, 15.0),
    Case("8B, 1,000 streams", EngineSize(QWEN3_8B, 256), QUESTIONS, 1000, 30.0, 30.0, is_planned_for=True),
    Case("8B, 150 chats", EngineSize(QWEN3_8B, 256), CHATS, 150),
    Case("8B, 250 chats", EngineSize(QWEN3_8B, 256), CHATS, 250, is_planned_for=True),
    Case("8B, 300 chats", EngineSize(QWEN3_8B, 256), CHATS, 300),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one engine did."""

    tokens_per_s: float
    steps_per_s: float
    mean_open: float
    first_token_s: float
    request_s: float
    cached_share: float


def detailed_figures(model: StepTimeModel, case: Case) -> Figures:
    """Of the real scheduler."""
    users = Users(case.habits, case.num_users, seed=1)
    outcome = run_users(model, case.size, users, warm_up_s=case.warm_up_s, seconds=case.seconds)
    lives = [life for life in outcome.lives if life.first_s is not None and life.ended_s is not None]
    return Figures(
        outcome.num_tokens / case.seconds,
        outcome.num_steps / case.seconds,
        outcome.mean_open,
        float(np.median([life.first_s - life.arrived_s for life in lives if life.first_s is not None])),
        float(np.mean([life.ended_s - life.arrived_s for life in lives if life.ended_s is not None])),
        sum(life.num_cached for life in lives) / sum(life.num_prompt for life in lives),
    )


def engine_rates(model: StepTimeModel, case: Case) -> EngineRates:
    """What the detailed engine does, and tells a gateway that watches its cache."""
    users = Users(case.habits, case.num_users, seed=1)
    outcome = run_users(model, case.size, users, warm_up_s=case.warm_up_s, seconds=case.seconds, keeps_events=True)
    return EngineRates(
        case.name,
        outcome.num_tokens / case.seconds,
        outcome.num_steps / case.seconds,
        len(outcome.lives) / case.seconds,
        outcome.mean_running,
        outcome.mean_open,
        (outcome.told.num_stored + outcome.told.num_removed) / case.seconds,
        case.size.num_blocks,
    )


def server_figures(model: StepTimeModel, case: Case) -> Figures:
    """Of the cheap engine."""
    users = Users(case.habits, case.num_users, seed=1)
    engine = EngineServer(StepCosts.of(model, case.size.shape), case.size)
    asks = [(users.think_s(), user) for user in range(case.num_users)]
    heapq.heapify(asks)
    visits: list[Visit] = []
    open_s, end_s = 0.0, case.warm_up_s + case.seconds
    before = (0.0, 0.0)
    tick_s = 0.002
    for tick in range(1, int(end_s / tick_s) + 1):
        now_s = tick * tick_s
        if tick == int(case.warm_up_s / tick_s):
            before = engine.num_tokens, engine.num_steps
        while asks and asks[0][0] <= now_s:
            asked_s, user = heapq.heappop(asks)
            asked_s = max(asked_s, engine.now_s)
            engine.advance(asked_s)
            engine.arrive(Visit(user, 0, users.ask(user), asked_s))
        engine.advance(now_s)
        for visit in engine.ended:
            heapq.heappush(asks, (visit.ended_s + users.think_s(), visit.user))
            if visit.arrived_s >= case.warm_up_s:
                visits.append(visit)
        engine.ended.clear()
        engine.started.clear()
        if now_s > case.warm_up_s:
            open_s += engine.num_open * tick_s
    return Figures(
        (engine.num_tokens - before[0]) / case.seconds,
        (engine.num_steps - before[1]) / case.seconds,
        open_s / case.seconds,
        float(np.median([visit.first_s - visit.arrived_s for visit in visits])),
        float(np.mean([visit.ended_s - visit.arrived_s for visit in visits])),
        sum(visit.num_cached for visit in visits) / sum(visit.turn.num_prompt for visit in visits),
    )
