"""Requests that come together with a common beginning: the first computes it, the others wait and share."""

import numpy as np

from pagewire.ipc.steps import StepBatch
from tests.fakes.step_executor import complete
from tests.unit.core.harness import Harness

PROMPT = list(range(10, 23))
"""Three full blocks of four tokens, and one token."""


def num_tokens(batch: StepBatch | None) -> int:
    return 0 if batch is None else int(np.frombuffer(batch.num_tokens, dtype="<i4").sum())


def test_one_prompt_is_computed_once_for_all() -> None:
    harness = Harness(max_num_batched_tokens=64)
    for stream in range(4):
        harness.add(stream, PROMPT, max_tokens=5)
    computed = 0
    while (batch := harness.scheduler.schedule() if harness.scheduler.can_schedule else None) or harness.worker.queue:
        computed += num_tokens(batch)
        if batch is not None:
            harness.worker.send(batch)
        else:
            harness.finish_step()
    assert all(harness.tokens[stream] == complete(PROMPT, 5) for stream in range(4))
    assert computed == len(PROMPT) + 3 * 1 + 4 * 4
    assert [harness.ended[stream].num_cached_tokens for stream in range(4)] == [0, 12, 12, 12]


def test_a_short_common_beginning_is_not_waited_for() -> None:
    harness = Harness(max_num_batched_tokens=64)
    harness.add(1, [*PROMPT[:4], 1, 2, 3, 4, 5])
    harness.add(2, [*PROMPT[:4], 6, 7, 8, 9, 1, 2, 3])
    assert num_tokens(harness.scheduler.schedule()) == 9 + 11


def test_who_waits_goes_on_when_the_first_is_cancelled() -> None:
    harness = Harness(max_num_batched_tokens=8)
    harness.add(1, PROMPT)
    harness.add(2, PROMPT, max_tokens=5)
    harness.schedule()
    harness.abort(1)
    harness.run()
    assert harness.tokens[2] == complete(PROMPT, 5)


def test_nobody_waits_without_a_prefix_cache_or_with_another_salt() -> None:
    for config, salt in (({"prefix_caching": False}, ""), ({}, "other")):
        harness = Harness(max_num_batched_tokens=64, **config)  # type: ignore[arg-type]
        harness.add(1, PROMPT)
        harness.add(2, PROMPT, cache_salt=salt)
        assert num_tokens(harness.scheduler.schedule()) == 2 * len(PROMPT)


def test_who_waits_for_others_lets_those_behind_pass() -> None:
    harness = Harness(num_blocks=256, max_num_seqs=16, max_num_batched_tokens=256)
    for stream in range(12):
        harness.add(stream, [stream // 2, *PROMPT], max_tokens=5)
    assert num_tokens(harness.scheduler.schedule()) == 6 * (1 + len(PROMPT))


def test_who_waits_for_others_keeps_a_slot() -> None:
    harness = Harness(num_blocks=256, max_num_seqs=3, max_num_batched_tokens=256)
    for stream in range(2):
        harness.add(stream, PROMPT, max_tokens=5)
    for stream in range(2, 5):
        harness.add(stream, [stream, *PROMPT], max_tokens=5)
    assert num_tokens(harness.scheduler.schedule()) == 2 * len(PROMPT) + 1
    harness.worker.queue.clear()


def test_pairs_begin_as_soon_as_single_requests() -> None:
    harness = Harness(num_blocks=4096, max_num_seqs=128, max_num_batched_tokens=2048)
    for stream in range(128):
        harness.add(stream, [stream // 2] * 100, max_tokens=50)
    steps = 0
    while harness.scheduler.load.num_running < 128:
        while harness.schedule():
            steps += 1
        harness.finish_step()
    assert steps <= 12
