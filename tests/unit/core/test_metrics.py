"""Do the scheduler's metrics say what happened? Against a count of every token and its time, made one by one."""

import random
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from pagewire.ipc.requests import EndReason
from scheduler_service.core.metrics.histogram import Histogram, one_two_five
from scheduler_service.core.metrics.times import Outcome
from scheduler_service.core.metrics.token_intervals import TokenIntervals
from tests.unit.core.harness import Harness


class TimedHarness(Harness):
    """Notes when each token came."""

    def __init__(self, **config: int) -> None:
        super().__init__(**config)
        self.token_times: defaultdict[int, list[float]] = defaultdict(list)
        self.arrivals: dict[int, float] = {}

    def arrive(self, stream_id: int, prompt: list[int], **changes: object) -> None:
        self.arrivals[stream_id] = self.clock_s
        self.add(stream_id, prompt, **changes)

    def finish_step(self) -> bool:
        before = {stream: len(tokens) for stream, tokens in self.tokens.items()}
        is_finished = super().finish_step()
        for stream, tokens in self.tokens.items():
            self.token_times[stream] += [self.clock_s] * (len(tokens) - before.get(stream, 0))
        return is_finished

    def run_with_time(self, random_s: random.Random) -> None:
        """Run until nothing is left to do, each step for another time."""
        while True:
            while self.schedule():
                pass
            self.clock_s += random_s.choice((0.004, 0.02, 0.3, 3.0))
            if not self.finish_step():
                return


def assert_same(histogram: Histogram, values: list[float]) -> None:
    expected = Histogram(histogram.edges)
    for value in values:
        expected.observe(value)
    assert histogram.counts == expected.counts
    assert histogram.sum == pytest.approx(expected.sum)


def assert_tokens_are_timed(harness: TimedHarness) -> None:
    metrics = harness.metrics
    times = harness.token_times
    assert metrics.num_output_tokens == sum(map(len, harness.tokens.values()))
    assert_same(metrics.time_to_first_token, [at[0] - harness.arrivals[stream] for stream, at in times.items() if at])
    assert_same(metrics.inter_token_latency, [b - a for at in times.values() for a, b in pairwise(at)])
    started = [stream for stream, at in times.items() if at]
    assert metrics.num_prompt_tokens == sum(harness.submits[stream].num_prompt_tokens for stream in started)


@pytest.mark.parametrize("seed", range(40))
def test_every_token_is_timed_whatever_happens(seed: int) -> None:
    """Few blocks, so that sequences are preempted; some are cancelled, some become ill, and workers die."""
    rng = random.Random(seed)
    harness = TimedHarness(
        num_blocks=14, max_num_seqs=rng.randint(1, 5), async_scheduling=rng.random() < 0.7, max_num_batched_tokens=7
    )
    num_lost = cancelled = 0
    for stream in range(12):
        prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 14))]
        harness.arrive(stream, prompt, max_tokens=rng.randint(1, 12))
        if rng.random() < 0.1:
            harness.give_nan_when_computing(prompt)
        for _ in range(rng.randint(0, 4)):
            harness.clock_s += rng.random() / 7
            harness.schedule()
            harness.finish_step()
        if rng.random() < 0.15 and harness.scheduler.has(b"gateway1", stream):
            harness.abort(stream)
            cancelled += 1
        if rng.random() < 0.08:
            harness.lose_worker()
            num_lost += 1
    harness.run_with_time(rng)
    assert_tokens_are_timed(harness)
    ends = Counter(ended.reason for ended in harness.ended.values())
    metrics = harness.metrics
    assert metrics.num_resets == num_lost
    assert metrics.ends == +Counter(
        {
            Outcome.LENGTH: ends[EndReason.LENGTH],
            Outcome.FAILED: ends[EndReason.FAILED],
            Outcome.CANCELLED: cancelled,
        }
    )
    complete = [stream for stream, ended in harness.ended.items() if ended.reason is EndReason.LENGTH]
    times = harness.token_times
    assert_same(metrics.request_latency, [times[stream][-1] - harness.arrivals[stream] for stream in complete])
    assert_same(metrics.decode_time, [times[stream][-1] - times[stream][0] for stream in complete])
    assert_same(metrics.output_lengths, [float(len(harness.tokens[stream])) for stream in complete])
    assert metrics.queue_time.sum + metrics.inference_time.sum == pytest.approx(metrics.request_latency.sum)
    assert metrics.prefill_time.sum + metrics.decode_time.sum == pytest.approx(metrics.inference_time.sum)


def test_what_is_preempted_waits_for_its_next_token_all_the_while() -> None:
    harness = TimedHarness(num_blocks=5, max_num_seqs=2)
    for stream in (1, 2):
        harness.arrive(stream, [stream, 2, 3], max_tokens=14)
    harness.run_with_time(random.Random(1))
    assert harness.scheduler.usage.num_preemptions == harness.metrics.num_requeued > 0
    assert_tokens_are_timed(harness)


def test_a_request_that_brings_output_has_no_first_token_here() -> None:
    harness = TimedHarness()
    harness.arrive(1, [1, 2, 3], max_tokens=10)
    while len(harness.tokens[1]) < 4:
        harness.schedule()
        harness.finish_step()
    other = TimedHarness()
    other.clock_s = 100.0
    other.submits, other.tokens[1] = dict(harness.submits), list(harness.tokens[1])
    assert other.resume(1) is None
    other.run_with_time(random.Random(1))
    metrics = other.metrics
    assert metrics.ends == Counter({Outcome.LENGTH: 1})
    assert (metrics.num_prompt_tokens, metrics.num_output_tokens, metrics.inter_token_latency.count) == (3, 6, 5)
    assert metrics.time_to_first_token.count == metrics.request_latency.count == 0


def test_a_stream_that_its_gateway_finds_complete_is_a_success() -> None:
    harness = TimedHarness()
    for stream in (1, 2, 3):
        harness.arrive(stream, [stream], max_tokens=50)
    for _ in range(5):
        harness.schedule()
        harness.finish_step()
    harness.scheduler.abort(b"gateway1", 1, Outcome.STOP)
    harness.abort(2)
    harness.scheduler.orphan_gateway(b"gateway1", now_s=0.0)
    harness.scheduler.expire(now_s=1e9)
    ends = {Outcome.STOP: 1, Outcome.CANCELLED: 1, Outcome.ABANDONED: 1}
    assert harness.metrics.ends == Counter(ends)
    assert harness.metrics.request_latency.count == 1


def test_prompts_found_in_the_cache_are_hits() -> None:
    harness = TimedHarness(num_blocks=64)
    prompt = list(range(1, 12))
    for stream in (1, 2):
        harness.arrive(stream, prompt, max_tokens=2)
        harness.run()
    usage = harness.scheduler.usage
    # Blocks of four; the last token is always computed.
    assert (usage.num_prompt_queries, usage.num_prompt_hits) == (22, 8)


def test_steps_are_counted_with_their_tokens() -> None:
    harness = TimedHarness(async_scheduling=False, max_num_batched_tokens=8)
    harness.arrive(1, list(range(1, 12)), max_tokens=3)
    harness.run_with_time(random.Random(0))
    # Two chunks of the prompt, then all tokens but the last, which nothing follows.
    assert harness.metrics.step_tokens.sum == 8 + 3 + 2
    assert harness.metrics.step_tokens.count == harness.metrics.step_time.count == 4


def test_values_fall_into_the_buckets_that_prometheus_means() -> None:
    histogram = Histogram([1, 2])
    for value in (0.5, 1, 1.5, 2, 2.5):
        histogram.observe(value)
    at_once = Histogram([1, 2])
    at_once.observe_all(np.array([0.5, 1, 1.5, 2, 2.5]))
    assert histogram.counts == at_once.counts == [2, 2, 1]
    assert histogram.sum == at_once.sum == 7.5


def test_edges_for_numbers_of_tokens() -> None:
    assert one_two_five(100) == [1, 2, 5, 10, 20, 50, 100]
    assert one_two_five(4096)[-3:] == [500, 1000, 2000]


def test_a_slot_of_another_sequence_starts_anew() -> None:
    histogram = Histogram([1, 10])
    intervals = TokenIntervals(4, histogram)
    slots = np.array([0, 2], dtype=np.int32)
    assert intervals.note_step(slots, slots.tobytes(), 10.0) == [0, 1]
    assert intervals.note_step(slots, slots.tobytes(), 11.0) == []
    assert intervals.leave_slot(2) == 11.0
    intervals.take_slot(2, None)
    assert intervals.note_step(slots, slots.tobytes(), 12.0) == [1]
    intervals.take_slot(2, 5.0)
    assert intervals.note_step(slots, slots.tobytes(), 13.0) == []
    assert (histogram.counts, histogram.sum) == ([4, 1, 0], 12.0)
