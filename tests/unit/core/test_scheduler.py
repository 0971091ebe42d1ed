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


def test_load_tells_the_tokens_of_prompts_that_are_still_to_be_computed() -> None:
    harness = Harness(max_num_seqs=1, async_scheduling=False)
    harness.add(1, list(range(40)), max_tokens=3)
    harness.add(2, list(range(100, 130)), max_tokens=1)
    told = [harness.scheduler.load.num_tokens_to_compute]
    while harness.schedule():
        told.append(harness.scheduler.load.num_tokens_to_compute)
        harness.finish_step()
    # The one token that a sequence computes in each step is not counted.
    assert told == [70, 30 + 23, 30 + 7, 30, 30, 30, 13, 0]
