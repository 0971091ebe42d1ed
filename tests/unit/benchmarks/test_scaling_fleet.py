"""Do simulated fleets behave, and does arithmetic about them hold?"""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from benchmarks.scaling import tables
from benchmarks.scaling.capacity import (
    GATEWAY_CORE_LIMIT,
    EngineRates,
    Installation,
    dns_answer_bytes,
    first_breaks,
    gateway_cores,
    gateways_needed,
    messages_per_step,
    scheduler_cores,
)
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.detail import EngineSize
from benchmarks.scaling.fleet import Fleet, FleetConfig
from benchmarks.scaling.policies import Beliefs, Chooser, Policy
from benchmarks.scaling.server import StepCosts
from benchmarks.scaling.shapes import QWEN3_8B
from benchmarks.scaling.step_time import fit
from benchmarks.scaling.studies import SIZES, fleet_jobs
from benchmarks.scaling.workload import CHATS
from scheduler_service.gateway.engines.engine_load import EngineLoad
from scheduler_service.gateway.engines.routing import Candidate, PrefixRouter

COSTS = Costs.read()
STEP_COSTS = StepCosts.of(fit(), QWEN3_8B)
RATES = EngineRates("", 4000.0, 90.0, 20.0, 50.0, 51.0, 1100.0, 22_000)
SMALL = FleetConfig(
    num_engines=6,
    num_gateways=4,
    users_per_engine=120,
    size=EngineSize(QWEN3_8B, 256),
    habits=CHATS,
    policy=Policy.PREFIX,
    warm_up_s=12.0,
    seconds=4.0,
)


def run(**changes):
    return Fleet(replace(SMALL, **changes), STEP_COSTS).run()


def beliefs(sequences, tokens=None):
    sequences = np.array(sequences, dtype=float)
    return Beliefs(sequences, np.zeros(len(sequences)) if tokens is None else np.array(tokens, dtype=float))


@pytest.mark.parametrize("seed", range(40))
def test_prefix_chooses_as_the_product_does(seed):
    """How often each engine is chosen, over many draws."""
    draw = Random(seed)
    count = draw.randrange(2, 7)
    sequences, tokens = [[draw.randrange(most) for _ in range(count)] for most in (60, 5000)]
    cached = {engine: draw.choice((160, 480, 1600)) for engine in range(count) if draw.random() < 0.4}
    router, chooser = PrefixRouter(Random(1)), Chooser(Policy.PREFIX, Random(2))
    candidates = [
        Candidate(str(engine), cached.get(engine, 0), EngineLoad(sequences[engine], tokens[engine]))
        for engine in range(count)
    ]
    num_draws = 600
    theirs = np.bincount([int(router.choose(candidates, 2000)) for _ in range(num_draws)], minlength=count)
    believed = beliefs(sequences, tokens)
    ours = np.bincount([chooser.choose(believed, list(cached.items()), 0) for _ in range(num_draws)], minlength=count)
    # The product draws two different engines, the simulation two that may be one.
    assert np.abs(theirs - ours).max() / num_draws < 0.3
    assert int(theirs.argmax()) == int(ours.argmax()) or np.sort(theirs)[-2] > 0.3 * num_draws


@pytest.mark.parametrize("policy", [Policy.PREFIX, Policy.PREFIX_OF_ALL])
def test_prefix_goes_where_it_is_cached_unless_that_is_overloaded(policy):
    chooser = Chooser(policy, Random(1))
    assert {chooser.choose(beliefs([9, 10, 9, 9]), [(1, 1600)], 0) for _ in range(50)} == {1}
    assert 1 not in {chooser.choose(beliefs([9, 60, 9, 9]), [(1, 1600)], 0) for _ in range(50)}


def test_hash_keeps_a_conversation_where_it_is():
    chooser = Chooser(Policy.HASH, Random(1))
    chosen = {chooser.choose(beliefs([5] * 50), [], 77) for _ in range(20)}
    assert len(chosen) == 1
    crowded = [5] * 50
    crowded[chosen.pop()] = 500
    assert crowded[chooser.choose(beliefs(crowded), [], 77)] == 5


def test_a_fleet_of_one_seed_does_the_same():
    assert run() == run()
    assert run() != run(seed=2)


def test_a_fleet_answers_all_its_users():
    outcome = run(policy=Policy.RANDOM)
    # By Little's law: users are reading or thinking.
    thinking = outcome.requests_per_s * CHATS.think_s
    assert outcome.mean_open + thinking == pytest.approx(6 * 120, rel=0.15)


def test_prefix_finds_what_random_choice_does_not():
    assert run().cached_share > 2 * run(policy=Policy.RANDOM).cached_share


def test_old_loads_lead_all_gateways_to_the_same_engine():
    fresh, old = (run(policy=Policy.LEAST_LOADED, status_period_s=period_s) for period_s in (0.1, 4.0))
    assert old.spread > 2 * fresh.spread


def test_gateways_that_know_some_engines_find_less_unless_users_stay():
    moving, staying = (run(num_engines=12, engines_per_gateway=3, users_stay=stay) for stay in (False, True))
    assert staying.cached_share > moving.cached_share + 0.2


def test_every_engine_is_known_to_some_gateway():
    fleet = Fleet(replace(SMALL, num_engines=12, engines_per_gateway=4, num_gateways=6), STEP_COSTS)
    assert fleet.known is not None
    assert all(len(known) == 4 for known in fleet.known)
    assert {int(engine) for known in fleet.known for engine in known} == set(range(12))


def test_the_fewest_gateways_are_enough_and_one_less_is_not():
    installation = Installation(32, 1)
    needed = gateways_needed(installation, RATES, COSTS)
    assert needed is not None
    used = [
        sum(gateway_cores(replace(installation, num_gateways=count), RATES, COSTS).values())
        for count in (needed, needed - 1)
    ]
    assert used[0] <= GATEWAY_CORE_LIMIT < used[1]


def test_no_number_of_gateways_is_enough_for_too_many_cache_events():
    assert gateways_needed(Installation(1000, 1), replace(RATES, cache_events_per_s=12_000.0), COSTS) is None


def test_messages_of_a_step_are_at_most_one_for_each_gateway_and_each_stream():
    assert messages_per_step(Installation(10, 1), RATES) == pytest.approx(1.0)
    assert messages_per_step(Installation(10, 100_000), RATES) == pytest.approx(RATES.num_running, rel=0.01)


def test_a_gateway_that_knows_fewer_engines_is_told_less():
    every, few = (Installation(640, 640, engines_per_gateway=subset) for subset in (None, 16))
    for cores in (gateway_cores, scheduler_cores):
        assert cores(few, RATES, COSTS)["cache events"] == pytest.approx(
            cores(every, RATES, COSTS)["cache events"] / 40
        )


def test_breaks_come_in_the_order_in_which_they_happen():
    sizes = [each.num_engines for each in first_breaks(RATES, COSTS) if each.num_engines is not None]
    assert len(sizes) >= 4
    assert sizes == sorted(sizes)


def test_a_dns_answer_has_sixteen_bytes_for_each_address():
    # Header 12, name 3+1+1+2+1+1, type and class 4, one record 16, options 11.
    assert dns_answer_bytes("abc.de", 1) == 12 + (1 + 3 + 1 + 2 + 1) + 4 + 16 + 11
    assert dns_answer_bytes("abc.de.", 1001) - dns_answer_bytes("abc.de", 1) == 16_000


def test_missing_costs_say_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match=r"benchmarks\.scaling\.measure"):
        Costs.read(tmp_path / "none.json")


def test_all_sizes_are_simulated():
    jobs = fleet_jobs()
    assert {job.config.num_engines for job in jobs if job.study == "size"} == set(SIZES)
    assert any(job.config.num_engines * job.config.users_per_engine == 1_000_000 for job in jobs)
    assert all(job.config.num_engines <= 16 for job in fleet_jobs(largest=16))


def test_the_report_has_every_part():
    results = {
        "fit": tables.fit_rows(),
        "validation": [],
        "agreement": [],
        "rates": [{"order": 0, **{name: getattr(RATES, name) for name in RATES.__slots__}}],
        "fleets": [],
    }
    text = "\n".join(tables.report(results, COSTS))
    assert "file descriptors" in text
    assert "Qwen3-8B" in text
    assert "The DNS answer" in text
