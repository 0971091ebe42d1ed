"""What becomes of sequences when logits are NaN or workers die, whoever is to blame."""

import pytest

from pagewire.ipc.requests import EndReason
from tests.fakes.step_executor import complete
from tests.unit.core.harness import Harness


def test_nan_fails_one_sequence_and_caches_none_of_its_last_blocks() -> None:
    harness = Harness()
    harness.worker.nan_after = 12
    harness.add(1, list(range(12)), max_tokens=5)
    harness.add(2, [1, 2], max_tokens=5)
    harness.run()
    assert harness.ended[1].reason is EndReason.FAILED
    assert harness.tokens[2] == complete([1, 2], 5)
    harness.worker.nan_after = None
    harness.add(3, [*range(12), 1], max_tokens=1)
    harness.run()
    assert harness.ended[3].num_cached_tokens == 0


def test_chunks_of_a_prompt_are_offered_once_it_gave_finite_logits() -> None:
    harness = Harness(max_num_batched_tokens=8, async_scheduling=False)
    harness.worker.nan_after = 20
    harness.add(1, list(range(20)), max_tokens=2)
    for _ in range(2):
        harness.schedule()
        harness.finish_step()
    harness.schedule()  # the last chunk, and the beginning of another with the same blocks
    harness.add(2, list(range(18)), max_tokens=1)
    harness.run()
    assert harness.ended[1].reason is EndReason.FAILED
    assert harness.ended[2].num_cached_tokens == 0
    assert harness.tokens[2] == complete(list(range(18)), 1)


def test_nan_withdraws_the_shared_blocks_that_it_read_and_their_holders_go_on() -> None:
    harness = Harness(max_num_batched_tokens=64)
    prefix = list(range(12))
    harness.add(1, [*prefix, 20], max_tokens=4)
    harness.run()
    harness.worker.nan_after = 20
    harness.add(2, [*prefix, 21], max_tokens=6)
    harness.add(3, [*prefix, *range(22, 31)], max_tokens=1)
    harness.run()
    assert [harness.ended[stream].num_cached_tokens for stream in (2, 3)] == [12, 12]
    assert harness.tokens[2] == complete([*prefix, 21], 6)
    assert harness.ended[3].reason is EndReason.FAILED
    harness.add(4, [*prefix, 40], max_tokens=1)
    harness.run()
    assert harness.ended[4].num_cached_tokens == 0
    assert harness.scheduler.load.num_free_blocks == 64


def test_nan_after_finite_logits_leaves_what_they_came_from_in_the_cache() -> None:
    harness = Harness()
    harness.worker.nan_after = 18
    harness.add(1, list(range(13)), max_tokens=30)
    harness.run()
    assert harness.ended[1].reason is EndReason.FAILED
    harness.worker.nan_after = None
    harness.add(2, [*range(13), *harness.tokens[1], 1, 2, 3, 4], max_tokens=1)
    harness.run()
    assert harness.ended[2].num_cached_tokens == 16


def test_reset_requeues_every_sequence_with_its_tokens() -> None:
    harness = Harness()
    prompts = {1: [1, 2, 3], 2: list(range(20)), 3: [9]}
    for stream, prompt in prompts.items():
        harness.add(stream, prompt, max_tokens=12)
    for _ in range(4):
        harness.schedule()
        harness.schedule()
        harness.finish_step()
    harness.schedule()
    harness.worker = type(harness.worker)(4, 64)
    harness.scheduler.reset(64)
    harness.run()
    for stream, prompt in prompts.items():
        assert harness.tokens[stream] == complete(prompt, 12)


def test_reset_to_a_smaller_pool_fails_what_can_never_fit() -> None:
    harness = Harness()
    harness.add(1, list(range(40)), max_tokens=10)
    harness.add(2, [1], max_tokens=3)
    harness.schedule()
    harness.worker = type(harness.worker)(4, 5)
    harness.scheduler.reset(5)
    harness.run()
    assert harness.ended[1].reason is EndReason.FAILED
    assert harness.tokens[2] == complete([1], 3)


@pytest.mark.parametrize("num_innocent", [0, 1, 3, 15])
@pytest.mark.parametrize("num_delivered", [0, 7])
def test_a_poisonous_sequence_fails_alone_after_three_deaths(num_innocent: int, num_delivered: int) -> None:
    harness = Harness(num_blocks=256, max_num_seqs=16, max_num_batched_tokens=64)
    prompts = {stream: [stream, 1, 2, 3, 4, 5] for stream in range(num_innocent + 1)}
    harness.kill_when_computing(prompts[0] + complete(prompts[0], num_delivered))
    for stream, prompt in reversed(prompts.items()):
        harness.add(stream, prompt, max_tokens=12)
    harness.run()
    assert harness.ended[0].reason is EndReason.FAILED
    assert "died three times" in harness.ended[0].detail
    assert harness.tokens[0] == complete(prompts[0], num_delivered)
    assert list(harness.deadly.values()) == [3]
    for stream in range(1, num_innocent + 1):
        assert harness.ended[stream].reason is EndReason.LENGTH
        assert harness.tokens[stream] == complete(prompts[stream], 12)
    assert harness.scheduler.load.num_free_blocks == 256


def test_suspects_run_one_at_a_time_and_others_wait() -> None:
    harness = Harness(async_scheduling=False)
    for stream in (1, 2):
        harness.add(stream, [stream] * 5, max_tokens=9)
    for _ in range(2):
        harness.schedule()
        harness.lose_worker()
    harness.add(3, [3] * 5, max_tokens=9)
    sizes = []
    for _ in range(3):
        harness.schedule()
        sizes.append(len(harness.worker.queue[0].slots) // 4)
        harness.finish_step()
    assert sizes == [1, 1, 3]
    harness.run()
    assert all(harness.tokens[stream] == complete([stream] * 5, 9) for stream in (1, 2, 3))


def test_deaths_are_not_held_against_who_makes_progress() -> None:
    harness = Harness()
    harness.add(1, [1, 2, 3], max_tokens=30)
    for _ in range(12):
        harness.schedule()
        harness.schedule()
        harness.lose_worker()
        for _ in range(3):
            harness.schedule()
            harness.finish_step()
    harness.run()
    assert harness.tokens[1] == complete([1, 2, 3], 30)


def test_a_death_while_nothing_is_in_flight_blames_nobody() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, [1, 2, 3], max_tokens=5)
    harness.add(2, [1, 2, 3], max_tokens=5)
    for _ in range(5):
        harness.lose_worker()
    harness.run()
    assert [harness.ended[stream].reason for stream in (1, 2)] == [EndReason.LENGTH] * 2


def test_a_step_that_did_not_reach_the_worker_blames_nobody() -> None:
    harness = Harness()
    harness.add(1, [1, 2, 3], max_tokens=5)
    for _ in range(5):
        harness.schedule()
        harness.scheduler.note_unsent(harness.worker.queue[0].step_id)
        harness.lose_worker()
    harness.run()
    assert harness.tokens[1] == complete([1, 2, 3], 5)


def test_a_cancelled_suspect_holds_up_nobody() -> None:
    harness = Harness()
    harness.add(1, [1] * 5, max_tokens=9)
    for _ in range(2):
        harness.schedule()
        harness.lose_worker()
    harness.add(2, [2] * 5, max_tokens=9)
    harness.schedule()
    harness.abort(1)
    harness.run()
    assert harness.tokens[2] == complete([2] * 5, 9)


def test_a_suspect_that_runs_twice_is_not_forgotten_when_one_run_ends() -> None:
    """Two gateways may submit one request to a new scheduler, one of them for a caller who went elsewhere meanwhile."""
    harness = Harness()
    for stream in (1, 2):
        harness.add(stream, [1] * 5, request_id="r", max_tokens=9)
    for _ in range(2):
        harness.schedule()
        harness.lose_worker()
    harness.abort(2)
    harness.run()
    assert harness.tokens[1] == complete([1] * 5, 9)


def test_a_poisonous_request_that_runs_twice_fails_twice_and_costs_three_deaths() -> None:
    harness = Harness()
    harness.kill_when_computing([1] * 5)
    for stream in (1, 2):
        harness.add(stream, [1] * 5, request_id="r", max_tokens=9)
    harness.run()
    assert [harness.ended[stream].reason for stream in (1, 2)] == [EndReason.FAILED] * 2
    assert list(harness.deadly.values()) == [3]
