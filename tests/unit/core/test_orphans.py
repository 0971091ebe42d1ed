"""What becomes of sequences whose gateway is gone: they run on, are resumed exactly, or end when the grace does."""

import numpy as np
import pytest

from pagewire.ipc.requests import EndReason, Sampling
from tests.fakes.bare_gateway import make_submit
from tests.fakes.step_executor import complete
from tests.unit.core.harness import GATEWAY, Harness

PROMPT = [1, 2, 3]


def running(**config: object) -> Harness:
    """A harness whose stream 1 has had some of its 12 tokens."""
    harness = Harness(**config)  # type: ignore[arg-type]
    harness.add(1, PROMPT, max_tokens=12)
    while len(harness.tokens[1]) < 4:
        harness.schedule()
        harness.finish_step()
    return harness


def test_orphan_runs_on_and_its_stream_gets_what_it_lacks() -> None:
    harness = running()
    received = list(harness.tokens[1])
    harness.lose_gateway()
    for _ in range(4):
        harness.schedule()
        harness.finish_step()
    assert harness.tokens[1] == received
    assert harness.resume(1) is None
    harness.collect()
    assert len(harness.tokens[1]) == len(received) + 4
    harness.run()
    assert harness.tokens[1] == complete(PROMPT, 12)


def test_orphan_that_lacks_logprobs_its_caller_wants_is_run_again() -> None:
    harness = Harness()
    with_logprobs = Sampling(0.0, 0, 1.0, 0.0, 0, None, 2)
    given = complete(PROMPT, 3)
    token_ids = np.array(PROMPT + given, dtype=np.int32).tobytes()
    harness.add(1, PROMPT, max_tokens=12, sampling=with_logprobs, token_ids=token_ids)
    harness.schedule()
    harness.finish_step()
    harness.lose_gateway()
    harness.tokens[1], harness.logprobs[1] = given[:2], b""
    harness.submits[1] = make_submit(1, PROMPT, max_tokens=12, sampling=with_logprobs)
    assert harness.resume(1) is None
    harness.run()
    assert harness.tokens[1] == complete(PROMPT, 12)
    harness.tokens[1], harness.submits[1] = (
        harness.tokens[1][2:],
        make_submit(1, PROMPT + given[:2], sampling=with_logprobs),
    )
    harness.check_logprobs(1)


def test_orphan_that_ended_is_told_whole() -> None:
    harness = running()
    harness.lose_gateway()
    harness.run()
    assert 1 not in harness.ended
    assert harness.scheduler.load.num_free_blocks == 64
    assert harness.resume(1) is None
    harness.collect()
    assert harness.tokens[1] == complete(PROMPT, 12)
    assert harness.ended[1].reason is EndReason.LENGTH
    assert harness.scheduler.find(harness.submits[1]) is None


def test_orphans_end_with_the_grace_and_free_their_blocks() -> None:
    harness = running(orphan_grace_s=10.0)
    harness.lose_gateway(now_s=100.0)
    harness.scheduler.expire(109.9)
    assert harness.scheduler.has_sequences
    harness.scheduler.expire(110.0)
    assert not harness.scheduler.has_sequences
    harness.run()
    assert harness.scheduler.load.num_free_blocks == 64
    assert harness.scheduler.find(harness.submits[1]) is None


@pytest.mark.parametrize("config", [{"orphan_grace_s": 0.0}, {"max_orphans": 0}, {"max_orphan_tokens": 5}])
def test_orphans_there_is_no_room_for_end_at_once(config: dict[str, object]) -> None:
    harness = running(**config)
    harness.lose_gateway()
    assert not harness.scheduler.has_sequences


def test_orphan_whose_deadline_passes_is_not_gone_on_with() -> None:
    harness = Harness()
    harness.add(1, PROMPT, max_tokens=12, deadline_s=5.0)
    harness.schedule()
    harness.lose_gateway()
    harness.scheduler.expire(6.0)
    assert harness.scheduler.find(harness.submits[1]) is None
    assert harness.resume(1, deadline_s=None) is None
    harness.run()
    assert harness.tokens[1] == complete(PROMPT, 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": Sampling(0.0, 0, 1.0, 0.0, 7)}, "the seed"),
        ({"sampling": Sampling(0.5, 0, 1.0, 0.0, 0)}, "sampling, limits"),
        ({"max_tokens": 13}, "sampling, limits"),
        ({"min_tokens": 1}, "sampling, limits"),
        ({"stop_token_ids": (5,)}, "sampling, limits"),
        ({"cache_salt": "another tenant's"}, "sampling, limits"),
        ({"tenant": "another"}, "sampling, limits"),
        ({"token_ids": np.array([1, 2, 4], dtype=np.int32).tobytes()}, "prompt and received tokens"),
        ({"num_prompt_tokens": 2}, "prompt and received tokens"),
        ({"token_ids": np.array([1, 2, 3] + [0] * 9, dtype=np.int32).tobytes()}, "prompt and received tokens"),
    ],
)
def test_resume_of_another_request_is_refused(changes: dict[str, object], words: str) -> None:
    harness = running()
    harness.lose_gateway()
    refusal = harness.resume(1, **changes)
    assert refusal is not None
    assert words in refusal.message
    assert harness.resume(1) is None
    harness.run()
    assert harness.tokens[1] == complete(PROMPT, 12)


def test_the_later_of_two_resumes_wins() -> None:
    harness = running()
    received = list(harness.tokens[1])
    assert harness.resume(1, as_stream=2) is None
    harness.collect()
    assert harness.ended[1].reason is EndReason.REPLACED
    assert harness.resume(1, as_stream=3) is None
    harness.run()
    assert harness.ended[2].reason is EndReason.REPLACED
    assert received + harness.tokens[3] == complete(PROMPT, 12)
    assert harness.ended[3].reason is EndReason.LENGTH


def test_gateway_that_took_its_leave_leaves_no_orphans() -> None:
    harness = running()
    harness.scheduler.abort_gateway(GATEWAY)
    assert not harness.scheduler.has_sequences
    assert harness.scheduler.find(harness.submits[1]) is None


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("num_meanwhile", [0, 1, 4])
def test_resumed_stream_gets_each_logprob_of_its_prompt_once(num_steps: int, num_meanwhile: int) -> None:
    harness = Harness(max_num_batched_tokens=4)
    harness.add(1, PROMPT * 3, max_tokens=12, sampling=Sampling(0.0, 0, 1.0, 0.0, 0, None, None, None, 1))
    for number in range(num_steps + num_meanwhile):
        if number == num_steps:
            harness.lose_gateway()
        harness.schedule()
        harness.finish_step()
    if not num_meanwhile:
        harness.lose_gateway()
    assert harness.resume(1) is None
    harness.run()
    assert harness.tokens[1] == complete(PROMPT * 3, 12)
    harness.check_prompt_logprobs(1)


def test_resume_that_has_more_logprobs_of_the_prompt_than_there_are_is_refused() -> None:
    harness = Harness(max_num_batched_tokens=4)
    harness.add(1, PROMPT * 3, max_tokens=12, sampling=Sampling(0.0, 0, 1.0, 0.0, 0, None, None, None, 1))
    harness.schedule()
    harness.finish_step()
    refusal = harness.resume(1, as_stream=2, num_known_prompt_logprobs=5)
    assert refusal is not None
    assert "prompt log probabilities" in refusal.message
