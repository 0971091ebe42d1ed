"""Does each policy give requests to the engines that it should, and do several gateways not all choose the same?"""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from scheduler_service.gateway.engines.engine_load import EngineLoad
from scheduler_service.gateway.engines.routing import Candidate, Router, RoutingPolicy, make_router

NUM_TOKENS = 1000
IDLE = EngineLoad(0, 0)
BUSY = EngineLoad(100, 100_000)


def router(policy: RoutingPolicy = RoutingPolicy.PREFIX, seed: int = 0) -> Router:
    return make_router(policy, random.Random(seed))


def count(router: Router, candidates: Sequence[Candidate], times: int = 300) -> Counter[str]:
    return Counter(router.choose(candidates, NUM_TOKENS) for _ in range(times))


def test_round_robin_takes_turns_wherever_it_begins() -> None:
    candidates = [Candidate(name, 0, IDLE) for name in "abc"]
    assert count(router(RoutingPolicy.ROUND_ROBIN), candidates) == {"a": 100, "b": 100, "c": 100}
    first = {router(RoutingPolicy.ROUND_ROBIN, seed).choose(candidates, NUM_TOKENS) for seed in range(20)}
    assert first == {"a", "b", "c"}


def test_round_robin_and_random_look_at_nothing() -> None:
    candidates = [Candidate("a", NUM_TOKENS - 1, IDLE), Candidate("b", 0, BUSY)]
    assert count(router(RoutingPolicy.ROUND_ROBIN), candidates) == {"a": 150, "b": 150}
    assert min(count(router(RoutingPolicy.RANDOM), candidates).values()) > 100


def test_a_prompt_goes_where_most_of_it_is_cached() -> None:
    load = EngineLoad(3, 500)
    candidates = [Candidate("a", 512, IDLE), Candidate("b", 768, load), Candidate("c", 0, IDLE)]
    assert count(router(), candidates) == {"b": 300}


def test_an_overloaded_engine_is_passed_over_for_the_next_best() -> None:
    candidates = [Candidate("a", 512, IDLE), Candidate("b", 768, BUSY), Candidate("c", 0, IDLE)]
    assert count(router(), candidates) == {"a": 300}


def test_load_that_all_have_is_no_overload() -> None:
    candidates = [Candidate("a", 512, BUSY), Candidate("b", 0, BUSY), Candidate("c", 0, BUSY)]
    assert count(router(), candidates) == {"a": 300}


def test_a_short_prefix_is_not_worth_much_work() -> None:
    short, long = [
        count(router(), [Candidate("a", num_tokens, EngineLoad(4, 500)), Candidate("b", 0, EngineLoad(3, 0))])
        for num_tokens in (64, 512)
    ]
    assert (short, long) == ({"b": 300}, {"a": 300})


def test_of_many_that_have_the_same_the_less_loaded_are_taken() -> None:
    candidates = [Candidate(f"{number}", 512, EngineLoad(number, 0)) for number in range(30)]
    chosen = count(router(), candidates)
    assert len(chosen) > 10
    assert sum(times for name, times in chosen.items() if int(name) < 15) > 250


def test_what_nobody_has_goes_to_the_less_loaded_but_not_always_to_the_same() -> None:
    loads = {"a": EngineLoad(10, 0), "b": EngineLoad(11, 0), "c": EngineLoad(12, 0)}
    chosen = count(router(), [Candidate(name, 0, load) for name, load in loads.items()])
    assert chosen["a"] > chosen["b"] > 0
    assert chosen["c"] == 0


@pytest.mark.parametrize("policy", RoutingPolicy)
def test_one_engine_gets_all(policy: RoutingPolicy) -> None:
    assert count(router(policy), [Candidate("a", 0, BUSY)]) == {"a": 300}
