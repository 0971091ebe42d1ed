"""Hypothesis drives the scheduler with random arrivals, cancels, exhaustion, late results and deaths of the worker."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagewire.ipc.requests import EndReason, Sampling
from tests.fakes.cache_mirror import CacheMirror, cached_names
from tests.fakes.step_executor import VOCAB, complete
from tests.unit.core.harness import Harness

WATCHER = b"watcher1"

# Few distinct tokens, so that prefixes are shared and stop tokens are hit.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
HEADS = st.lists(st.integers(0, 1), max_size=7)
TAILS = st.lists(st.integers(0, 1), max_size=6)


class SchedulerMachine(RuleBasedStateMachine):
    """Every stream ends exactly once, with the tokens of an undisturbed run, unless it was cancelled or has to fail.

    One that kills workers fails, after three deaths at most; so does one whose logits are NaN, and one that ran alone,
    as a suspect, when a worker was lost.
    """

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        extra_blocks=st.integers(0, 12),
        max_num_seqs=st.integers(1, 5),
        extra_budget=st.integers(0, 12),
        prefix_caching=st.booleans(),
        async_scheduling=st.booleans(),
    )
    def start(
        self,
        block_size: int,
        extra_blocks: int,
        max_num_seqs: int,
        extra_budget: int,
        prefix_caching: bool,
        async_scheduling: bool,
    ) -> None:
        self.num_blocks = -(-24 // block_size) + extra_blocks
        self.harness = Harness(
            self.num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_budget,
            prefix_caching=prefix_caching,
            async_scheduling=async_scheduling,
        )
        self.mirror = CacheMirror()
        self.harness.scheduler.watch_cache(WATCHER)
        self.expected: dict[int, tuple[list[int], EndReason]] = {}
        self.cancelled: set[int] = set()
        self.unlucky: set[int] = set()
        self.resumed: set[int] = set()

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 10),
        stops=st.sets(st.integers(0, VOCAB - 1), max_size=6),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "x"]),
        num_logprobs=st.sampled_from([None, 0, 2]),
        num_prompt_logprobs=st.sampled_from([None, None, 0, 1]),
        tenant=st.sampled_from(["", "a"]),
    )
    def arrive(
        self,
        prompt: list[int],
        max_tokens: int,
        stops: set[int],
        priority: int,
        salt: str,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None,
        tenant: str,
    ) -> None:
        stream = len(self.expected)
        tokens = complete(prompt, max_tokens, frozenset(stops))
        reason = EndReason.STOP if tokens[-1] in stops else EndReason.LENGTH
        self.expected[stream] = (tokens, reason)
        self.harness.add(
            stream,
            prompt,
            max_tokens=max_tokens,
            stop_token_ids=tuple(stops),
            priority=priority,
            cache_salt=salt,
            tenant=tenant,
            sampling=Sampling(0.0, 0, 1.0, 0.0, 0, None, num_logprobs, None, num_prompt_logprobs),
        )

    @rule(head=HEADS, tail=TAILS, max_tokens=st.integers(1, 10), data=st.data())
    def arrive_poisonous(self, head: list[int], tail: list[int], max_tokens: int, data: st.DataObject) -> None:
        """A sequence that kills workers, at a place in its prompt or its output."""
        prompt, expected, place = self._draw_failing(head, tail, max_tokens, data)
        self.harness.kill_when_computing(place)
        self._add_failing(prompt, expected, max_tokens)

    @rule(head=HEADS, tail=TAILS, max_tokens=st.integers(1, 10), twice=st.booleans(), data=st.data())
    def arrive_ill(self, head: list[int], tail: list[int], max_tokens: int, twice: bool, data: st.DataObject) -> None:
        """A sequence, or two of them, whose logits are NaN from some place on."""
        prompt, expected, place = self._draw_failing(head, tail, max_tokens, data)
        self.harness.give_nan_when_computing(place)
        for _ in range(1 + twice):
            self._add_failing(prompt, expected, max_tokens)

    def _draw_failing(
        self, head: list[int], tail: list[int], max_tokens: int, data: st.DataObject
    ) -> tuple[list[int], list[int], list[int]]:
        """A prompt that is like no other, the tokens that come of it, and the place that is computed in vain."""
        prompt = [*head, VOCAB + len(self.expected), *tail]
        tokens = complete(prompt, max_tokens)[: data.draw(st.integers(0, max_tokens - 1))]
        return prompt, tokens, prompt + tokens if tokens else prompt[: len(head) + 1]

    def _add_failing(self, prompt: list[int], tokens: list[int], max_tokens: int) -> None:
        stream = len(self.expected)
        self.expected[stream] = (tokens, EndReason.FAILED)
        self.harness.add(stream, prompt, max_tokens=max_tokens)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [stream for stream in self.expected if stream not in self.harness.ended]
        if live:
            stream = data.draw(st.sampled_from(live))
            self.cancelled.add(stream)
            self.harness.abort(stream)

    @rule()
    def schedule(self) -> None:
        self.harness.schedule()

    @rule()
    def result_arrives(self) -> None:
        self.harness.finish_step()

    @rule(steps=st.integers(1, 6))
    def run_a_while(self, steps: int) -> None:
        for _ in range(steps):
            self.harness.schedule()
            self.harness.finish_step()

    @rule(steps=st.integers(0, 4), grace_ends=st.booleans())
    def gateway_is_lost_and_another_resumes(self, steps: int, grace_ends: bool) -> None:
        self.harness.lose_gateway()
        self.run_a_while(steps)
        if grace_ends:
            self.harness.scheduler.expire(1e9)
        for stream in self.expected:
            if stream not in self.harness.ended and stream not in self.cancelled:
                assert self.harness.resume(stream) is None
                self.resumed.add(stream)
        self.harness.collect()

    @precondition(lambda self: self.expected)
    @rule()
    def workers_are_lost(self) -> None:
        batches = list(self.harness.worker.queue)
        before = set(self.harness.ended)
        self.harness.lose_worker()
        for stream in set(self.harness.ended) - before:
            assert self.harness.ended[stream].reason is EndReason.FAILED
            assert all(len(batch.slots) == 4 for batch in batches), "it was not alone"
            assert len(self.harness.ended) == len(before) + 1
            self.unlucky.add(stream)

    @rule()
    def finish_everything(self) -> None:
        self.harness.run()
        for stream, (tokens, reason) in self.expected.items():
            self.harness.check_logprobs(stream)
            self.harness.check_prompt_logprobs(stream)
            if stream in self.cancelled | self.unlucky:
                assert self.harness.tokens[stream] == tokens[: len(self.harness.tokens[stream])]
                continue
            assert stream in self.harness.ended, "starved"
            assert self.harness.ended[stream].reason is reason
            if stream in self.resumed and reason is EndReason.FAILED:
                # Found to be poisonous while nobody listened: what nobody has heard is lost with it.
                assert self.harness.tokens[stream] == tokens[: len(self.harness.tokens[stream])]
            else:
                assert self.harness.tokens[stream] == tokens
        assert self.harness.scheduler.load.num_free_blocks == self.num_blocks
        assert self.harness.scheduler.load.num_running == 0
        assert all(count <= 3 for count in self.harness.deadly.values())

    @rule()
    def the_cache_is_flushed(self) -> None:
        self.harness.scheduler.flush_cache()

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "harness"):
            self.harness.scheduler.check_integrity()

    @invariant()
    def a_watcher_knows_what_is_cached(self) -> None:
        if hasattr(self, "harness"):
            for _, message in self.harness.scheduler.journal.take_messages():
                self.mirror.take(message)
            assert self.mirror.blocks.keys() == cached_names(self.harness.scheduler)

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.finish_everything()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
