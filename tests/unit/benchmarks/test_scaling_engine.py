"""Are simulated engines right: their step times, the detailed one, and the server that stands for it?"""

import itertools

import numpy as np
import pytest

from benchmarks.scaling.agreement import Case, detailed_figures, server_figures
from benchmarks.scaling.detail import EngineSize, run_users
from benchmarks.scaling.engine import DetailedEngine
from benchmarks.scaling.server import EngineServer, StepCosts, Visit
from benchmarks.scaling.shapes import QWEN3_0_6B, QWEN3_8B
from benchmarks.scaling.step_time import MEASURED, Step, fit, relative_errors
from benchmarks.scaling.workload import CHATS, QUESTIONS, Habits, Lengths, Turn, Users
from scheduler_service.core.config import SchedulerConfig

MODEL = fit()
SHORT = Habits(Lengths(40, 0.5, 100), Lengths(20, 0.5, 60), think_s=0.2, goes_on=0.7)


def test_shapes_have_the_known_numbers_of_parameters():
    assert QWEN3_0_6B.weight_bytes / 2 == pytest.approx(596e6, rel=0.01)
    assert QWEN3_8B.weight_bytes / 2 == pytest.approx(8.19e9, rel=0.01)
    assert QWEN3_0_6B.kv_bytes_per_token == 114_688


def test_fit_is_near_every_measured_step():
    assert max(abs(error) for error in relative_errors(MODEL)) < 0.05


def test_no_part_of_a_step_is_faster_than_its_floor():
    layers, floors = MODEL.factors[:2], MODEL.factors[2:]
    assert min(layers) > 0
    assert min(floors) >= 1.0


def test_fit_without_noise_finds_the_factors():
    exact = [type(point)(point.shape, point.step, MODEL.seconds(point.shape, point.step)) for point in MEASURED]
    assert fit(exact).factors == pytest.approx(MODEL.factors, rel=1e-6)


@pytest.mark.parametrize("shape", [QWEN3_0_6B, QWEN3_8B])
@pytest.mark.parametrize("step", [Step(1, 900), Step(200, 160_000), Step(64, 30_000, 1900, 0.0)])
def test_costs_of_a_server_are_those_of_the_model(shape, step):
    costs = StepCosts.of(MODEL, shape)
    seconds = costs.seconds(step.num_decodes, step.num_kv_tokens, step.num_prompt_tokens)
    # A server does not tell the head's FLOPs from the layers'.
    assert seconds == pytest.approx(MODEL.seconds(shape, step), rel=0.2)


def test_a_step_takes_as_long_as_the_scheduler_if_that_is_longer():
    costs = StepCosts.of(MODEL, QWEN3_0_6B, host_s=0.5, host_seq_s=0.01)
    assert costs.seconds(10, 1000, 0) == pytest.approx(0.6)


def test_detailed_engine_gives_every_token_of_every_request():
    engine = DetailedEngine(MODEL, QWEN3_0_6B, SchedulerConfig(max_num_seqs=4), 512)
    numbers = [engine.submit(b"gateway1", np.arange(length, dtype=np.int32), 9, 0.0) for length in (5, 40, 3000, 7, 7)]
    ended = []
    while engine.next_end_s is not None:
        ended += engine.finish_step()
    assert sorted(ended) == numbers
    assert engine.num_tokens == 9 * len(numbers)
    assert all(0 < life.first_s < life.ended_s <= engine.now_s for life in engine.lives.values())


def test_the_detailed_engine_tells_as_many_tokens_as_it_makes():
    outcome = run_users(
        MODEL, EngineSize(QWEN3_0_6B, 16), Users(SHORT, 8, 3), num_gateways=2, warm_up_s=0.5, seconds=1.0,
        keeps_events=True,
    )  # fmt: skip
    assert outcome.num_tokens > 100
    assert 0 < outcome.told.num_messages <= 2 * outcome.num_steps + len(outcome.lives) * 2
    assert outcome.told.num_bytes > 8 * outcome.num_tokens
    assert outcome.told.num_stored > 0


@pytest.mark.parametrize("habits", [QUESTIONS, CHATS])
def test_users_of_one_seed_ask_the_same(habits):
    first, second = (Users(habits, 3, 7) for _ in range(2))
    assert [first.ask(number % 3) for number in range(50)] == [second.ask(number % 3) for number in range(50)]


def test_conversations_grow_by_what_was_asked_and_answered():
    users = Users(CHATS, 1, 7)
    turns = [users.ask(0) for _ in range(200)]
    going_on = [(old, new) for old, new in itertools.pairwise(turns) if new.num_history]
    assert 100 < len(going_on) < 190
    assert all(new.num_history == old.num_total for old, new in going_on)
    assert all(new.conversation == old.conversation for old, new in going_on)
    assert all(turn.num_total <= CHATS.max_context for turn in turns)


def test_lengths_have_the_mean_that_is_asked_for():
    drawn = Lengths(300, 0.7, 100_000).draw(np.random.default_rng(0), 100_000)
    assert drawn.mean() == pytest.approx(300, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "habits", "num_users"), [(QWEN3_0_6B, QUESTIONS, 48), (QWEN3_8B, CHATS, 60)], ids=["questions", "chats"]
)
def test_server_agrees_with_the_detailed_engine(shape, habits, num_users):
    case = Case("", EngineSize(shape, 256), habits, num_users, warm_up_s=8.0, seconds=6.0)
    detailed, server = detailed_figures(MODEL, case), server_figures(MODEL, case)
    assert server.tokens_per_s == pytest.approx(detailed.tokens_per_s, rel=0.08)
    assert server.mean_open == pytest.approx(detailed.mean_open, rel=0.08)
    assert server.request_s == pytest.approx(detailed.request_s, rel=0.1)
    assert server.cached_share == pytest.approx(detailed.cached_share, abs=0.08)


def test_a_server_that_is_done_holds_nothing():
    engine = EngineServer(StepCosts.of(MODEL, QWEN3_0_6B), EngineSize(QWEN3_0_6B, 4))
    for number in range(10):
        engine.arrive(Visit(number, 0, Turn(number, 0, 100 + number, 50), 0.0))
    assert engine.num_open == 10
    engine.advance(60.0)
    assert [visit.user for visit in engine.ended] == list(range(10)) or len(engine.ended) == 10
    assert engine.num_open == 0
    assert engine.num_tokens == pytest.approx(500)
    assert engine.num_to_compute == pytest.approx(0, abs=1e-3)
    assert engine.cached_tokens(3) == (100 + 3 + 50 - 1) // 16 * 16


def test_a_server_computes_only_what_is_not_cached():
    engine = EngineServer(StepCosts.of(MODEL, QWEN3_8B), EngineSize(QWEN3_8B, 4))
    engine.arrive(Visit(0, 0, Turn(0, 0, 1600, 10), 0.0))
    engine.advance(5.0)
    engine.arrive(Visit(0, 0, Turn(0, 1610, 100, 10), 5.0))
    engine.advance(10.0)
    cold, warm = engine.ended
    assert warm.num_cached == 1600
    assert warm.first_s - warm.arrived_s < (cold.first_s - cold.arrived_s) / 2
