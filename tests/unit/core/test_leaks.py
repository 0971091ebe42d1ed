"""Is anything left in the scheduler of requests that are over, however they came to their end?"""

from collections.abc import Callable

import pytest

from scheduler_service.core.sequence import Sequence
from scheduler_service.core.waiting_queue import WaitingQueue
from tests.fakes.reachable import reachable
from tests.unit.core.harness import GATEWAY, Harness


def complete(harness: Harness, first: int) -> None:
    for stream in range(first, first + 6):
        harness.add(stream, [stream, 1, 2], max_tokens=1 + stream % 16)
    harness.run()


def cancel_at_every_state(harness: Harness, first: int) -> None:
    for stream in range(first, first + 9):
        harness.add(stream, [stream, 1], max_tokens=30)
    harness.abort(first)
    harness.schedule()
    harness.abort(first + 1)
    harness.finish_step()
    for stream in range(first + 2, first + 9):
        harness.abort(stream)
        harness.schedule()
    harness.run()


def let_deadlines_pass(harness: Harness, first: int) -> None:
    for stream in range(first, first + 6):
        harness.add(stream, [stream, 1], max_tokens=30, deadline_s=1.0 + first)
    harness.schedule()
    harness.scheduler.expire(1.0 + first)
    harness.run()


def lose_gateways(harness: Harness, first: int) -> None:
    """Some orphans are resumed, while they run and afterwards, and some are not."""
    for stream in range(first, first + 6):
        harness.add(stream, [stream, 1], max_tokens=4 + stream % 3)
    harness.schedule()
    harness.finish_step()
    harness.lose_gateway(now_s=float(first))
    assert harness.resume(first) is None
    harness.run()
    assert harness.resume(first + 1) is None
    harness.run()
    harness.scheduler.expire(first + 1e6)
    harness.run()


def take_streams_over(harness: Harness, first: int) -> None:
    harness.add(first, [first, 1], max_tokens=8)
    harness.schedule()
    harness.finish_step()
    assert harness.resume(first, as_stream=first + 1) is None
    harness.run()


def lose_workers(harness: Harness, first: int) -> None:
    for stream in range(first, first + 6):
        harness.add(stream, [stream, 1], max_tokens=8)
    harness.schedule()
    harness.lose_worker()
    harness.schedule()
    harness.lose_worker()
    harness.run()


def end_with_nan(harness: Harness, first: int) -> None:
    harness.give_nan_when_computing([first % 50, 1])
    harness.add(first, [first % 50, 1], max_tokens=8)
    harness.run()
    harness.worker.ill = frozenset()


WAYS = [
    complete,
    cancel_at_every_state,
    let_deadlines_pass,
    lose_gateways,
    take_streams_over,
    lose_workers,
    end_with_nan,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_left_of_requests_that_are_over(way: Callable[[Harness, int], None]) -> None:
    harness = Harness(num_blocks=24, prefix_caching=False)
    counts = []
    for round_number in range(40):
        way(harness, 100 * round_number)
        harness.tokens.clear()
        harness.ended.clear()
        if round_number % 10 == 9:
            left = reachable(harness.scheduler)
            assert [item for item in left if isinstance(item, Sequence)] == []
            counts.append(len(left))
    # Numbers of requests and steps grow; small numbers are shared objects.
    assert max(counts) - min(counts) <= 10, counts
    assert harness.scheduler.load.num_free_blocks == 24


def test_what_is_held_against_requests_that_never_come_back_is_bounded() -> None:
    harness = Harness(prefix_caching=False)
    for stream in range(1500):
        harness.add(stream, [1], max_tokens=2)
        harness.schedule()
        harness.lose_worker()
        harness.abort(stream)
    harness.run()
    left = reachable(harness.scheduler)
    assert sum(isinstance(item, str) and item.startswith("r") and item[1:].isdigit() for item in left) <= 1100


def test_requests_that_end_behind_others_are_forgotten_before_their_turn() -> None:
    harness = Harness()
    for stream in range(8):
        harness.add(stream, [1, 2], max_tokens=30, priority=1)
    harness.schedule()
    for stream in range(100, 1100):
        harness.add(stream, [1, 2], max_tokens=30)
        harness.abort(stream)
    assert sum(isinstance(item, Sequence) for item in reachable(harness.scheduler)) <= 16
    harness.run()
    assert sorted(harness.ended) == list(range(8))


def test_queue_keeps_its_order_when_it_forgets() -> None:
    harness = Harness()
    queue = WaitingQueue()
    sequences = []
    for stream in range(20):
        harness.add(stream, [1], priority=stream % 3)
        sequences.append(harness.scheduler.find(harness.submits[stream]))
        queue.push(sequences[-1])
    for stream in range(0, 20, 2):
        harness.scheduler.abort(GATEWAY, stream)
        queue.note_over()
    harness.scheduler.abort(GATEWAY, 1)
    queue.note_over()
    expected = sorted((s for s in sequences if not s.is_over), key=lambda sequence: sequence.order)
    taken = []
    while (sequence := queue.peek()) is not None:
        taken.append(sequence)
        queue.pop()
    assert taken == expected
