"""When a scheduler that was told to stop does so, and whom it refuses meanwhile."""

import pytest

from pagewire.ipc.requests import RejectReason
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.drain import Drain
from tests.fakes.bare_gateway import make_submit
from tests.unit.core.harness import Harness


def begun(timeout_s: float = 1000.0) -> Drain:
    drain = Drain(timeout_s)
    assert drain.begin()
    return drain


def test_nothing_changes_before_it_begins() -> None:
    drain = Drain(1000.0)
    assert not drain.is_under_way
    assert drain.refuse(make_submit(1, [1])) is None
    assert drain.describe() == ""


def test_no_time_or_a_second_word_means_at_once() -> None:
    assert not Drain(0.0).begin()
    assert not begun().begin()


def test_new_requests_are_refused_and_accepted_ones_are_not() -> None:
    drain = begun()
    refusal = drain.refuse(make_submit(1, [1]))
    assert refusal is not None
    assert refusal.reason is RejectReason.UNAVAILABLE
    assert "takes no new requests" in refusal.message
    assert drain.refuse(make_submit(1, [1], resumes=True)) is not None
    assert drain.refuse(make_submit(1, [1], was_accepted=True)) is None


def test_it_lasts_until_sequences_end_or_workers_or_time_are_gone() -> None:
    drain = begun()
    assert drain.why_over(3, has_workers=True) == ""
    assert drain.why_over(0, has_workers=True) == "all sequences have ended"
    assert "workers are gone, and 3 sequences" in drain.why_over(3, has_workers=False)
    assert "s is over, and 3" in begun(1e-9).why_over(3, has_workers=True)


def test_orphans_are_waited_for_until_their_grace_ends_whether_they_run_or_have_ended() -> None:
    harness = Harness(orphan_grace_s=10.0)
    harness.add(1, [1, 2, 3], max_tokens=4)
    harness.add(2, [1, 2, 3], max_tokens=100)
    harness.schedule()
    assert harness.scheduler.num_unfinished == 2
    harness.lose_gateway(now_s=0.0)
    for _ in range(8):
        harness.finish_step()
        harness.schedule()
    assert harness.scheduler.load.num_running == 1
    assert harness.scheduler.num_unfinished == 2
    harness.scheduler.expire(10.0)
    assert harness.scheduler.num_unfinished == 0


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match="drain_timeout_s is -1"):
        SchedulerConfig(drain_timeout_s=-1)
