"""How long do streams wait for a scheduler, and what do they ask of the next one?"""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from pagewire.ipc.requests import Ended, EndReason
from scheduler_service.gateway.engines import waiting_streams
from scheduler_service.gateway.engines.waiting_streams import WaitingStreams
from scheduler_service.gateway.exceptions import DeadlinePassedError, EngineUnavailableError
from scheduler_service.gateway.generation import int32_array
from tests.fakes.tiny_model import byte_level_ids
from tests.unit.gateway.test_stream import feed, stream_of, take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Streams wait by its `now_s`."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(waiting_streams.time, "monotonic", lambda: clock.now_s)
    return clock


def test_streams_wait_for_the_timeout_in_order(clock: SimpleNamespace) -> None:
    waiting = WaitingStreams(5.0)
    first, second = stream_of(), stream_of()
    waiting.add(first)
    clock.now_s = 104.0
    waiting.add(second)
    assert (waiting.all(), waiting.overdue()) == ([first, second], [])
    clock.now_s = 105.0
    ((late, error),) = waiting.overdue()
    assert late is first
    assert isinstance(error, EngineUnavailableError)
    assert "none was ready within 5 s" in str(error)
    for _ in range(2):
        waiting.discard(first)
    assert (waiting.all(), waiting.overdue()) == ([second], [])


def test_engines_that_are_lost_at_once_give_a_stream_no_more_time(clock: SimpleNamespace) -> None:
    waiting = WaitingStreams(5.0)
    stream, other = stream_of(), stream_of()
    waiting.add(stream)
    clock.now_s = 103.0
    waiting.take(stream)
    # Where it waits for its turn, it waits as long as it must.
    clock.now_s = 200.0
    waiting.add(other)
    waiting.add(stream)
    assert (waiting.all(), waiting.overdue()) == ([stream, other], [])
    clock.now_s = 202.0
    assert [late for late, _ in waiting.overdue()] == [stream]
    # A token is worth another wait.
    waiting.take(stream)
    stream.push(7)
    waiting.add(stream)
    assert waiting.overdue() == []
    clock.now_s = 205.0
    assert [late for late, _ in waiting.overdue()] == [other]


def test_streams_do_not_wait_past_their_deadline() -> None:
    waiting = WaitingStreams(1000.0)
    late, early = stream_of(deadline_s=time.time() - 1), stream_of(deadline_s=time.time() + 1000)
    waiting.add(late)
    waiting.add(early)
    ((stream, error),) = waiting.overdue()
    assert stream is late
    assert isinstance(error, DeadlinePassedError)


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_stream_submits_its_prompt_and_all_output_that_has_arrived(num_taken: int) -> None:
    stream = stream_of(received_ids=int32_array([1, 2]))
    received, more = [1, 2], byte_level_ids(b"abcde")
    for token in more[:num_taken]:
        feed(stream, [token])
        take(stream)
    feed(stream, more[num_taken:])
    submit = stream.to_submit()
    assert np.frombuffer(submit.token_ids, np.int32).tolist() == [1, 2, *received, *more]
    assert (submit.num_prompt_tokens, submit.max_tokens) == (2, 100)
    assert list(take(stream).token_ids) == more[num_taken:]
    feed(stream, byte_level_ids(b"f"), Ended(1, EndReason.LENGTH, None, 5, ""))
    assert list(take(stream).token_ids) == byte_level_ids(b"f")
    assert stream.num_output_tokens == 8


def test_stream_counts_the_cached_tokens_of_its_first_run() -> None:
    for stop_texts in ((), ("b",)):
        stream = stream_of(stop_texts=stop_texts)
        stream.start(3)
        feed(stream, byte_level_ids(b"a"))
        stream.start(16)
        feed(stream, byte_level_ids(b"b"), Ended(1, EndReason.LENGTH, None, 16, ""))
        finish = take(stream).finish
        assert finish is not None
        assert finish.num_cached_tokens == 3


def test_only_what_a_scheduler_took_is_said_to_be_accepted() -> None:
    claimed = stream_of(is_resumed=True)
    submit = claimed.to_submit()
    assert (submit.resumes, submit.was_accepted) == (True, False)
    claimed.accept()
    submit = claimed.to_submit()
    assert (submit.resumes, submit.was_accepted) == (False, True)


def test_stream_submits_for_its_tenant() -> None:
    assert [stream_of(**fields).to_submit().tenant for fields in ({}, {"tenant": "ana"})] == ["", "ana"]
