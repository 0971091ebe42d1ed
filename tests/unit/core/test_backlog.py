"""Is the waiting queue bounded, and do refused callers learn when to come back?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.ipc.requests import RejectReason
from scheduler_service.core.backlog import Backlog
from scheduler_service.core.config import SchedulerConfig
from tests.fakes.bare_gateway import make_submit
from tests.unit.core.harness import Harness


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def new_backlog(clock: Clock, max_requests: int = 20, max_tokens: int = 1000) -> Backlog:
    return Backlog(SchedulerConfig(max_waiting_requests=max_requests, max_waiting_tokens=max_tokens), clock)


def test_backlog_is_bounded_in_requests() -> None:
    backlog = new_backlog(Clock(), max_requests=2)
    for _ in range(2):
        assert backlog.refuse(5) is None
        backlog.enter(5)
    refusal = backlog.refuse(5)
    assert refusal is not None
    assert (refusal.reason, refusal.field, refusal.retry_after_s) == (
        RejectReason.OVERLOADED,
        "max_waiting_requests",
        1,
    )
    backlog.leave(5, to_run=False)
    assert backlog.refuse(5) is None
    assert backlog.size == (1, 5)


def test_backlog_is_bounded_in_tokens_but_takes_any_request_when_empty() -> None:
    backlog = new_backlog(Clock(), max_tokens=100)
    assert backlog.refuse(5000) is None
    backlog.enter(60)
    assert backlog.refuse(40) is None
    refusal = backlog.refuse(41)
    assert refusal is not None
    assert refusal.field == "max_waiting_tokens"
    assert "1 requests wait with 60 tokens" in refusal.message


@pytest.mark.parametrize(("interval_s", "retry_s"), [(0.5, 1.0), (0.001, 0.1), (100.0, 60.0)])
def test_callers_come_back_when_a_tenth_of_the_queue_has_left(interval_s: float, retry_s: float) -> None:
    clock = Clock()
    backlog = new_backlog(clock)
    for _ in range(60):
        backlog.enter(1)
    for _ in range(40):
        backlog.leave(1, to_run=True)
        clock.now_s += interval_s
    refusal = backlog.refuse(1)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(retry_s)


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    backlog = new_backlog(clock, max_requests=1)
    backlog.enter(1)
    backlog.leave(1, to_run=True)
    clock.now_s += 3600
    for _ in range(2):
        backlog.enter(1)
    clock.now_s += 0.5
    backlog.leave(1, to_run=True)
    refusal = backlog.refuse(1)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(0.5)


def test_an_engine_that_stands_still_says_later_and_later() -> None:
    clock = Clock()
    backlog = new_backlog(clock, max_requests=1)
    for _ in range(3):
        backlog.enter(1)
    for _ in range(2):
        backlog.leave(1, to_run=True)
        clock.now_s += 1
    soon, _ = backlog.refuse(1), setattr(clock, "now_s", clock.now_s + 20)
    late = backlog.refuse(1)
    assert soon is not None
    assert late is not None
    assert late.retry_after_s > soon.retry_after_s


def test_a_full_room_still_takes_who_holds_less_than_a_share() -> None:
    backlog = new_backlog(Clock(), max_requests=12)
    for _ in range(12):
        assert backlog.refuse(1, "flood") is None
        backlog.enter(1, "flood")
    for _ in range(6):
        assert backlog.refuse(1, "flood") is not None
        assert backlog.refuse(1, "other") is None
        backlog.enter(1, "other")
    refusal = backlog.refuse(1, "other")
    assert refusal is not None
    assert refusal.message == "18 requests wait, and 12 may; 6 of the requests are this tenant's"
    assert backlog.refuse(1, "third") is None
    backlog.leave(1, "other", to_run=True)
    assert backlog.refuse(1, "other") is None
    assert backlog.refuse(1, "flood") is not None


def test_a_share_is_one_of_tokens_too() -> None:
    backlog = new_backlog(Clock(), max_tokens=100)
    backlog.enter(100, "flood")
    assert backlog.refuse(60, "other") is None
    backlog.enter(20, "other")
    assert backlog.refuse(30, "other") is None
    refusal = backlog.refuse(31, "other")
    assert refusal is not None
    assert refusal.field == "max_waiting_tokens"


@given(arrivals=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 60), st.booleans()), max_size=200))
def test_the_room_is_never_twice_as_full_as_it_may_be(arrivals: list[tuple[str, int, bool]]) -> None:
    backlog, waiting = new_backlog(Clock(), max_requests=8, max_tokens=100), list[tuple[str, int]]()
    for tenant, num_tokens, leaves in arrivals:
        if backlog.refuse(num_tokens, tenant) is None:
            backlog.enter(num_tokens, tenant)
            waiting.append((tenant, num_tokens))
        if leaves and waiting:
            first_tenant, first_tokens = waiting.pop(0)
            backlog.leave(first_tokens, first_tenant, to_run=True)
        assert backlog.size == (len(waiting), sum(tokens for _, tokens in waiting))
        assert len(waiting) <= 16
        assert backlog.size[1] <= 200


def test_what_is_said_to_be_resumed_is_bounded_too() -> None:
    config = SchedulerConfig(max_waiting_requests=3, max_num_seqs=4, max_num_batched_tokens=16)
    backlog = Backlog(config, Clock())
    num_taken = 0
    while backlog.refuse_resumed(1) is None:
        backlog.enter(1)
        num_taken += 1
    assert num_taken == 3 + 3 + 4


def test_the_gateways_word_passes_the_limit_and_a_callers_word_only_so_far() -> None:
    harness = Harness(max_waiting_requests=2)
    for stream in range(2):
        harness.add(stream, [1, 2])
    refuse = harness.scheduler.refuse_for_room
    assert refuse(make_submit(9, [1])) is not None
    for stream in range(2, 2 + 2 + 4):
        assert refuse(make_submit(9, [1], resumes=True)) is None
        harness.add(stream, [1, 2])
    assert refuse(make_submit(9, [1], resumes=True)) is not None
    assert refuse(make_submit(9, [1], was_accepted=True)) is None
