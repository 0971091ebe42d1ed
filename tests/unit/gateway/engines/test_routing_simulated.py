"""Do several engines find as much in their caches as one that is as large, and share the work? In made-up time."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from scheduler_service.gateway.engines.routing import RoutingPolicy
from tests.fakes.simulated_engines import Asked, Clock, SimulatedEngine, SimulatedGateway

NUM_ENGINES, NUM_BLOCKS = 3, 1000
WARM_UP_S, SECONDS = 10.0, 20.0


@dataclass
class Simulation:
    """Requests go over the gateways at random."""

    clock: Clock
    gateways: list[SimulatedGateway]
    source: random.Random
    done: list[Asked]

    def ask(self, prompt: list[int], max_tokens: int, then: Callable[[Asked], None] = lambda _: None) -> None:
        def end(asked: Asked) -> None:
            self.done.append(asked)
            then(asked)

        self.source.choice(self.gateways).ask(Asked(prompt, max_tokens, end))

    def at_random(self, per_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            action()
            self.clock.after(self.source.expovariate(per_s), act)

        self.clock.after(0.0, act)

    def words(self, least: int, most: int) -> list[int]:
        return [self.source.randrange(32_000) for _ in range(self.source.randint(least, most))]


def chat(simulation: Simulation) -> None:
    """Each turn's prompt is all that was said before, and new words."""
    source, instructions = simulation.source, simulation.words(64, 64)

    def talk(said: list[int], num_turns: int) -> None:
        def then(asked: Asked) -> None:
            if num_turns > 1:
                said = asked.prompt + asked.output + simulation.words(20, 120)
                simulation.clock.after(source.expovariate(0.4), lambda: talk(said, num_turns - 1))

        simulation.ask(said, source.randint(20, 80), then)

    simulation.at_random(3.5, lambda: talk(instructions + simulation.words(60, 400), 1 + int(source.expovariate(0.25))))


def shared_prefixes(simulation: Simulation) -> None:
    """Questions after one of 40 instructions, the n-th of which is asked 1/n times as often as the first."""
    instructions = [simulation.words(400, 1600) for _ in range(40)]
    weights = [1 / rank for rank in range(1, 41)]

    def ask() -> None:
        (chosen,) = simulation.source.choices(instructions, weights)
        simulation.ask(chosen + simulation.words(20, 100), simulation.source.randint(20, 60))

    simulation.at_random(16.0, ask)


def simulate(
    workload: Callable[[Simulation], None], policy: RoutingPolicy, num_engines: int, num_gateways: int = 2
) -> tuple[float, float]:
    """The share of the prompts that was found in caches, and the load of the busiest engine over the mean.

    One engine is as large and as fast as all would be.
    """
    clock = Clock()
    speed = NUM_ENGINES // num_engines
    engines = [SimulatedEngine(clock, f"engine{number}", NUM_BLOCKS, speed) for number in range(num_engines)]
    gateways = [
        SimulatedGateway(clock, f"gateway{number}".encode(), engines, policy, number) for number in range(num_gateways)
    ]
    simulation = Simulation(clock, gateways, random.Random(5), [])
    workload(simulation)
    clock.run(WARM_UP_S)
    for engine in engines:
        engine.count()
        engine.sequence_s = engine.num_tokens = 0
    clock.run(WARM_UP_S + SECONDS)
    done = [asked for asked in simulation.done if asked.sent_s >= WARM_UP_S]
    hit_rate = sum(asked.num_cached_tokens for asked in done) / sum(len(asked.prompt) for asked in done)
    loads = [[engine.sequence_s for engine in engines], [engine.num_tokens for engine in engines]]
    return hit_rate, max(max(each) * num_engines / sum(each) for each in loads)


@pytest.mark.parametrize("workload", [chat, shared_prefixes])
def test_prefix_routing_finds_what_one_large_engine_finds_and_shares_the_work(
    workload: Callable[[Simulation], None],
) -> None:
    most, _ = simulate(workload, RoutingPolicy.PREFIX, 1)
    hit_rate, imbalance = simulate(workload, RoutingPolicy.PREFIX, NUM_ENGINES)
    by_turns, _ = simulate(workload, RoutingPolicy.ROUND_ROBIN, NUM_ENGINES)
    assert hit_rate >= 0.9 * most
    assert imbalance < 1.3
    assert by_turns < 0.8 * hit_rate


def test_gateways_that_do_not_know_of_each_other_do_not_flock_together() -> None:
    hit_rate, imbalance = simulate(shared_prefixes, RoutingPolicy.PREFIX, NUM_ENGINES, num_gateways=12)
    assert hit_rate > 0.75
    assert imbalance < 1.3
