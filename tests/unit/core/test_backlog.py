"""Is the waiting queue bounded, and do refused callers learn when to come back?"""

import pytest

from pagewire.ipc.requests import RejectReason
from scheduler_service.core.backlog import Backlog
from scheduler_service.core.config import SchedulerConfig


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
