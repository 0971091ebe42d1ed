"""Scheduling policy by plain function calls: what each step holds, and when blocks come back."""

import numpy as np
import pytest

from pagewire.ipc.requests import EndReason
from pagewire.ipc.steps import StepOutput
from tests.fakes.step_executor import complete
from tests.unit.core.harness import GATEWAY, Harness


def ints(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype=np.int32).tolist()


def test_generate_gives_the_models_tokens() -> None:
    harness = Harness()
    prompt = [1, 2, 3, 4, 5]
    harness.add(1, prompt, max_tokens=9)
    harness.run()
    assert harness.tokens[1] == complete(prompt, 9)
    assert harness.ended[1].reason is EndReason.LENGTH
    assert harness.scheduler.load.num_free_blocks == 64


def test_eos_ends_a_sequence_and_its_late_token_is_dropped() -> None:
    prompt = [7, 8, 9]
    eos = complete(prompt, 4)[3]
    harness = Harness(eos=frozenset({eos}))
    expected = complete(prompt, 20, frozenset({eos}))
    harness.add(1, prompt, max_tokens=20, ignore_eos=False)
    harness.run()
    assert harness.tokens[1] == expected
    assert (harness.ended[1].reason, harness.ended[1].stop_token_id) == (EndReason.STOP, eos)


def test_ignore_eos_runs_to_max_tokens() -> None:
    prompt = [7, 8, 9]
    eos = complete(prompt, 4)[3]
    harness = Harness(eos=frozenset({eos}))
    harness.add(1, prompt, max_tokens=20)
    harness.run()
    assert len(harness.tokens[1]) == 20


def test_stop_token_counts_only_after_min_tokens() -> None:
    prompt = [7, 8, 9]
    output = complete(prompt, 30)
    harness = Harness()
    harness.add(1, prompt, max_tokens=30, stop_token_ids=(output[0], output[10]), min_tokens=5)
    harness.run()
    stops = [i for i, token in enumerate(output) if token in (output[0], output[10]) and i >= 5]
    assert harness.tokens[1] == output[: stops[0] + 1]


def test_long_prompt_is_chunked_beside_decodes() -> None:
    harness = Harness(max_num_batched_tokens=8, async_scheduling=False)
    harness.add(1, [1, 2], max_tokens=20)
    assert harness.schedule()
    assert harness.finish_step()
    harness.add(2, list(range(20)), max_tokens=2)
    sizes = []
    for _ in range(3):
        harness.schedule()
        batch = harness.worker.queue[0]
        sizes.append((ints(batch.num_tokens), list(batch.sampled)))
        harness.finish_step()
    assert sizes == [([1, 7], [1, 0]), ([1, 7], [1, 0]), ([1, 6], [1, 1])]


def test_single_token_sequences_come_first_in_a_batch() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(1, list(range(7)), max_tokens=4)
    harness.add(2, [5, 6, 7], max_tokens=4)
    harness.schedule()
    assert ints(harness.worker.queue[0].num_tokens) == [1, 7]


def test_next_step_is_sent_before_the_result_of_this_one() -> None:
    harness = Harness()
    harness.add(1, [1, 2, 3], max_tokens=5)
    assert harness.schedule()
    assert harness.schedule()
    assert not harness.schedule()
    assert len(harness.worker.queue) == 2


def test_synchronous_scheduling_keeps_one_step_in_flight() -> None:
    harness = Harness(async_scheduling=False)
    harness.add(1, [1, 2, 3], max_tokens=5)
    assert harness.schedule()
    assert not harness.schedule()
    harness.run()
    assert harness.tokens[1] == complete([1, 2, 3], 5)


def test_end_by_length_is_known_ahead_and_schedules_no_extra_step() -> None:
    harness = Harness()
    harness.add(1, [1, 2, 3], max_tokens=2)
    assert harness.schedule()
    assert harness.schedule()
    harness.finish_step()
    assert not harness.schedule()


def test_cancel_frees_blocks_within_two_steps() -> None:
    harness = Harness()
    harness.add(1, list(range(12)), max_tokens=30)
    harness.schedule()
    harness.schedule()
    assert harness.scheduler.load.num_free_blocks < 64
    harness.abort(1)
    harness.finish_step()
    harness.finish_step()
    assert harness.scheduler.load.num_free_blocks == 64
    assert harness.scheduler.load.num_running == 0
    assert 1 not in harness.ended


def test_cancel_while_waiting_never_runs() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, [1], max_tokens=3)
    harness.add(2, [2], max_tokens=3)
    harness.schedule()
    harness.abort(2)
    harness.run()
    assert 2 not in harness.tokens
    assert harness.ended.keys() == {1}


def test_cancel_of_unknown_stream_is_ignored() -> None:
    harness = Harness()
    harness.abort(99)
    harness.run()


def test_lost_gateway_ends_all_its_sequences_and_no_other() -> None:
    harness = Harness()
    harness.add(1, [1, 2], max_tokens=5)
    harness.add(2, [3, 4], max_tokens=5)
    harness.schedule()
    harness.scheduler.abort_gateway(b"another")
    assert harness.scheduler.has(GATEWAY, 1)
    harness.scheduler.abort_gateway(GATEWAY)
    harness.run()
    assert harness.scheduler.load.num_free_blocks == 64
    assert not harness.ended


def test_preemption_recomputes_and_changes_no_token() -> None:
    harness = Harness(num_blocks=10, max_num_seqs=4, prefix_caching=False)
    prompts = {i: [i, i + 1, i + 2, i + 3] for i in range(1, 5)}
    for stream, prompt in prompts.items():
        harness.add(stream, prompt, max_tokens=20)
    harness.run()
    for stream, prompt in prompts.items():
        assert harness.tokens[stream] == complete(prompt, 20)
    assert harness.scheduler.load.num_free_blocks == 10


def test_preempted_is_the_youngest() -> None:
    harness = Harness(num_blocks=4, async_scheduling=False, prefix_caching=False)
    harness.add(1, [1, 2, 3, 4], max_tokens=12)
    harness.add(2, [5, 6, 7], max_tokens=9)
    harness.run()
    assert list(harness.ended) == [1, 2]
    assert harness.tokens[2] == complete([5, 6, 7], 9)


def test_prefix_cache_shares_full_blocks_and_says_so() -> None:
    harness = Harness()
    prompt = list(range(13))
    harness.add(1, prompt, max_tokens=3)
    harness.run()
    harness.add(2, [*prompt, 40, 41], max_tokens=3)
    harness.schedule()
    assert harness.worker.queue[0].added[0].num_computed_tokens == 12
    harness.run()
    assert harness.ended[2].num_cached_tokens == 12
    assert harness.tokens[2] == complete([*prompt, 40, 41], 3)


def test_prefix_cache_leaves_one_token_to_compute() -> None:
    harness = Harness()
    prompt = list(range(12))
    for stream in (1, 2):
        harness.add(stream, prompt, max_tokens=3)
        harness.run()
    assert harness.ended[2].num_cached_tokens == 8
    assert harness.tokens[2] == complete(prompt, 3)


def test_prefix_cache_is_kept_apart_by_salt() -> None:
    harness = Harness()
    for stream, salt in ((1, "a"), (2, "b"), (3, "a")):
        harness.add(stream, list(range(13)), cache_salt=salt)
        harness.run()
    assert [harness.ended[stream].num_cached_tokens for stream in (1, 2, 3)] == [0, 0, 12]


def test_output_tokens_are_cached_too() -> None:
    harness = Harness()
    prompt = [1, 2, 3]
    harness.add(1, prompt, max_tokens=10)
    harness.run()
    turn = prompt + harness.tokens[1] + [9]
    harness.add(2, turn, max_tokens=2)
    harness.run()
    assert harness.ended[2].num_cached_tokens == 12


@pytest.mark.parametrize(("prompt", "num_cached"), [(list(range(9)), 4), (list(range(20, 29)), 8)])
def test_eviction_takes_the_oldest_and_deepest_first(prompt: list[int], num_cached: int) -> None:
    harness = Harness(num_blocks=8, max_num_seqs=1)
    harness.add(1, list(range(9)), max_tokens=1)
    harness.run()
    harness.add(2, list(range(20, 29)), max_tokens=1)
    harness.run()
    harness.add(3, list(range(30, 49)), max_tokens=1)  # 5 blocks: 4 unused ones, then the oldest sequence's deepest
    harness.run()
    harness.add(4, prompt, max_tokens=1)
    harness.run()
    assert harness.ended[4].num_cached_tokens == num_cached


def test_higher_priority_is_admitted_first() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, [1], max_tokens=2)
    harness.schedule()
    harness.add(2, [2], max_tokens=2)
    harness.add(3, [3], max_tokens=2, priority=5)
    harness.run()
    assert list(harness.ended) == [1, 3, 2]


def test_deadline_ends_waiting_and_running() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(1, [1], max_tokens=30, deadline_s=100.0)
    harness.add(2, [2], max_tokens=30, deadline_s=100.0)
    harness.add(3, [3], max_tokens=3, deadline_s=200.0)
    harness.schedule()
    harness.scheduler.expire(150.0)
    harness.run()
    assert [harness.ended[i].reason for i in (1, 2, 3)] == [EndReason.DEADLINE, EndReason.DEADLINE, EndReason.LENGTH]


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
        sizes.append(len(ints(harness.worker.queue[0].slots)))
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


@pytest.mark.parametrize("step_id", [0, 2, 77])
def test_result_of_another_step_is_refused_and_changes_nothing(step_id: int) -> None:
    harness = Harness()
    harness.add(1, [1, 2], max_tokens=4)
    harness.schedule()
    good = harness.worker.run_next()
    with pytest.raises(ValueError, match=r"oldest step|tokens for"):
        harness.scheduler.update(StepOutput(step_id, b"" if step_id == 0 else good.token_ids, good.nan_flags))
    harness.scheduler.update(good)
    harness.run()
    harness.collect()
    assert harness.tokens[1] == complete([1, 2], 4)
