"""Does everybody get a turn: the higher priority first, the lower in the end, and one tenant no more than another?"""

from itertools import count, cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.core.fair_queue import SHARE_OF_TURNS, FairQueue
from scheduler_service.core.sequence import Sequence
from scheduler_service.core.tenant_service import OUTPUT_TOKEN, PROMPT_TOKEN
from tests.fakes.bare_gateway import make_submit
from tests.unit.core.harness import GATEWAY, Harness

PRIORITIES, TENANTS = st.integers(-2, 2), st.sampled_from(["a", "b", "c"])


class Arrivals:
    """A queue, and sequences that come to it one after the other."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self._arrival = count()

    def add(self, tenant: str = "", priority: int = 0, num_prompt: int = 1) -> Sequence:
        arrival = next(self._arrival)
        submit = make_submit(arrival, [0] * num_prompt, tenant=tenant, priority=priority)
        sequence = Sequence.of(submit, GATEWAY, arrival, num_prompt + 100, frozenset())
        self.queue.push(sequence)
        return sequence

    def admit(self) -> Sequence:
        sequence = self.queue.peek()
        assert sequence is not None
        self.queue.pop()
        sequence.num_cached_tokens = 0
        self.queue.note_turn(sequence)
        return sequence


@given(early=st.lists(st.tuples(TENANTS, PRIORITIES), min_size=1, max_size=20), flooded=st.lists(TENANTS, min_size=1))
def test_every_request_is_admitted_under_a_flood_of_higher_priorities(
    early: list[tuple[str, int]], flooded: list[str]
) -> None:
    arrivals = Arrivals()
    left = {arrivals.add(tenant, priority) for tenant, priority in early}
    num_levels = len({priority for _, priority in early} | {3})
    for turn in range(SHARE_OF_TURNS * num_levels * len(early)):
        arrivals.add(flooded[turn % len(flooded)], priority=3)
        left.discard(arrivals.admit())
    assert not left


@given(early=st.lists(PRIORITIES, min_size=1, max_size=SHARE_OF_TURNS - 1))
def test_the_higher_priority_comes_first_and_then_the_first_come(early: list[int]) -> None:
    arrivals = Arrivals()
    sequences = [arrivals.add(priority=priority) for priority in early]
    assert [arrivals.admit() for _ in early] == sorted(sequences, key=lambda sequence: sequence.order)


def test_the_lower_priorities_have_one_turn_of_eight_among_them() -> None:
    arrivals = Arrivals()
    for _ in range(100):
        for priority in (0, 1, 2):
            arrivals.add(priority=priority)
    turns = [arrivals.admit().priority for _ in range(10 * SHARE_OF_TURNS)]
    assert [turns.count(priority) for priority in (0, 1, 2)] == [5, 5, 70]


@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=8),
    num_slots=st.integers(1, 5),
    steps=st.integers(1, 200),
)
def test_tenants_that_wait_all_the_time_are_served_alike(
    requests: list[tuple[int, int]], num_slots: int, steps: int
) -> None:
    """Whatever their requests cost, services differ by at most what runs at once: the paper's theorem 4.4."""
    arrivals, served, running = Arrivals(), {"a": 0, "b": 0}, list[tuple[Sequence, int]]()
    coming = {"a": cycle(requests), "b": cycle(sorted(requests))}
    outputs: dict[Sequence, int] = {}

    def come(tenant: str) -> None:
        num_prompt, num_output = next(coming[tenant])
        outputs[arrivals.add(tenant, num_prompt=num_prompt)] = num_output

    for tenant in "abab":
        come(tenant)
    most = max(PROMPT_TOKEN * num_prompt + OUTPUT_TOKEN * num_output for num_prompt, num_output in requests)
    for _ in range(steps):
        while len(running) < num_slots:
            sequence = arrivals.admit()
            served[sequence.tenant] += PROMPT_TOKEN * sequence.num_prompt_tokens
            running.append((sequence, outputs[sequence]))
            come(sequence.tenant)
        for sequence, _ in running:
            sequence.token_ids.append(0)
            served[sequence.tenant] += OUTPUT_TOKEN
            arrivals.queue.charge(sequence)
        running = [(sequence, n) for sequence, n in running if len(sequence.token_ids) < sequence.num_prompt_tokens + n]
        assert abs(served["a"] - served["b"]) <= (num_slots + 1) * most


@given(num_waiting=st.integers(1, 200), num_served=st.integers(0, 200))
def test_who_comes_late_waits_for_no_flood(num_waiting: int, num_served: int) -> None:
    arrivals = Arrivals()
    for _ in range(num_waiting + num_served):
        arrivals.add("flood", num_prompt=10)
    for _ in range(num_served):
        arrivals.admit()
    late = arrivals.add("late")
    assert late in (arrivals.admit(), arrivals.admit())


def test_nobody_saves_up_turns_while_idle() -> None:
    arrivals = Arrivals()
    for tenant in ("idle", "busy"):
        arrivals.add(tenant)
        arrivals.admit()
    for _ in range(100):
        arrivals.add("busy", num_prompt=10)
        arrivals.admit()
    for tenant in ("busy", "idle"):
        for _ in range(20):
            arrivals.add(tenant, num_prompt=10)
    turns = [arrivals.admit().tenant for _ in range(20)]
    assert 9 <= turns.count("idle") <= 11


def test_who_was_preempted_comes_back_before_those_who_have_not_run() -> None:
    arrivals = Arrivals()
    first = arrivals.add("a", num_prompt=90)
    assert arrivals.admit() is first
    arrivals.add("b")
    arrivals.queue.push(first)
    assert arrivals.admit() is first


def test_a_queue_remembers_few_of_those_who_are_gone() -> None:
    arrivals = Arrivals()
    for number in range(5000):
        arrivals.add(f"tenant {number}", priority=number % 1000)
        arrivals.admit()
    levels = arrivals.queue._levels
    assert len(levels) <= 64
    arrivals = Arrivals()
    for number in range(5000):
        arrivals.add(f"tenant {number}")
        arrivals.admit()
    (level,) = arrivals.queue._levels.values()
    assert len(level.service._served) <= 1024


@pytest.mark.parametrize("num_flooding", [20, 400])
def test_a_flood_of_one_tenant_does_not_delay_another(num_flooding: int) -> None:
    harness = Harness(max_num_seqs=2)
    for stream in range(num_flooding):
        harness.add(stream, [1, stream % 50, 3], tenant="flood")
    for _ in range(20):
        harness.schedule()
        harness.finish_step()
    harness.add(9999, [7, 8], tenant="other")
    num_steps = 0
    while 9999 not in harness.ended:
        harness.schedule()
        harness.finish_step()
        num_steps += 1
    # The two that run end, and it runs: 8 tokens each.
    assert num_steps <= 20


def test_requests_of_a_lower_priority_end_under_a_flood_of_higher_ones() -> None:
    harness = Harness(max_num_seqs=2)
    for stream in range(3):
        harness.add(stream, [stream, 2], tenant="low", priority=-5, max_tokens=4)
    for stream in range(100, 400):
        harness.add(stream, [stream % 50, 3], tenant="high", priority=5, max_tokens=4)
        harness.schedule()
        harness.finish_step()
        harness.finish_step()
    assert {0, 1, 2} <= harness.ended.keys()
    assert harness.scheduler.load.num_waiting > 50


def test_the_youngest_of_the_lowest_priority_is_preempted() -> None:
    # Each has a block and wants a second one at the same time: there are two.
    harness = Harness(num_blocks=5, async_scheduling=False)
    for stream, priority in enumerate((-1, -1, 0)):
        harness.add(stream, [stream, 1, 2], priority=priority, max_tokens=12)
    while harness.scheduler.load.num_running in (0, 3):
        harness.schedule()
        harness.finish_step()
    assert [sequence.stream_id for sequence in harness.scheduler._waiting.live()] == [1]
    harness.run()
    assert sorted(harness.ended) == [0, 1, 2]
