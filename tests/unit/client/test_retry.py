"""When does the retry policy wait, how long, and when does it give up?"""

import grpc
import pytest

from pagewire_client.errors import CancelledError, ErrorDetails, UnavailableError, make_error
from pagewire_client.retry import NO_RETRY, Attempts, RetryPolicy


def unavailable(retry_delay_s=None):
    return make_error(grpc.StatusCode.UNAVAILABLE, "gone", ErrorDetails(retry_delay_s=retry_delay_s))


def test_backoff_doubles_up_to_the_limit():
    policy = RetryPolicy(max_attempts=10, initial_backoff_s=1.0, max_backoff_s=4.0)
    for num_failures, expected in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 4.0)):
        assert 0.8 * expected <= policy.backoff_s(num_failures, None) <= 1.2 * expected


def test_a_resume_is_tried_more_often_for_half_a_minute():
    policy = RetryPolicy()
    waits = [policy.backoff_s(number, None, resumes=True) for number in range(1, policy.max_resume_attempts)]
    assert max(waits) <= 1.2 * policy.max_resume_backoff_s < policy.max_backoff_s
    assert 25 < sum(waits) < 40


def test_backoff_is_never_less_than_the_server_asked_for():
    assert RetryPolicy(initial_backoff_s=0.1).backoff_s(1, 5.0) == 5.0


def test_attempts_are_limited():
    attempts = Attempts(RetryPolicy(max_attempts=3, initial_backoff_s=0.0), None)
    attempts.wait_after(unavailable())
    attempts.wait_after(unavailable())
    with pytest.raises(UnavailableError):
        attempts.wait_after(unavailable())


def test_no_retry_gives_up_at_once():
    with pytest.raises(UnavailableError):
        Attempts(NO_RETRY, None).wait_after(unavailable())


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_other_codes_are_final(code):
    error = make_error(code, "no")
    with pytest.raises(type(error)):
        Attempts(RetryPolicy(), None).wait_after(error)


def test_a_call_that_a_server_cut_is_sent_again_and_one_that_was_cancelled_here_is_not():
    attempts = Attempts(RetryPolicy(), None)
    assert attempts.wait_after(make_error(grpc.StatusCode.CANCELLED, "CANCELLED")) > 0
    for message in ("Locally cancelled by application!", "Channel closed!", ""):
        with pytest.raises(CancelledError):
            attempts.wait_after(make_error(grpc.StatusCode.CANCELLED, message))


def test_a_server_without_room_is_asked_again_when_it_says_so():
    full = make_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ErrorDetails(retry_delay_s=3.0))
    assert Attempts(RetryPolicy(), None).wait_after(full) >= 3.0


def test_a_wait_past_the_deadline_is_not_begun():
    attempts = Attempts(RetryPolicy(), timeout_s=1.0)
    with pytest.raises(UnavailableError):
        attempts.wait_after(unavailable(retry_delay_s=5.0))
