"""Hypothesis drives scheduler and block manager with random arrivals, cancels, exhaustion and late results."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagewire.ipc.requests import EndReason
from tests.fakes.step_executor import VOCAB, StepExecutor, complete
from tests.unit.core.harness import Harness

# Few distinct tokens, so that prefixes are shared and stop tokens are hit.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class SchedulerMachine(RuleBasedStateMachine):
    """Every stream ends exactly once, with the tokens of an undisturbed run, unless it was cancelled."""

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
        self.expected: dict[int, tuple[list[int], EndReason]] = {}
        self.cancelled: set[int] = set()

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 10),
        stops=st.sets(st.integers(0, VOCAB - 1), max_size=6),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "x"]),
    )
    def arrive(self, prompt: list[int], max_tokens: int, stops: set[int], priority: int, salt: str) -> None:
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
        )

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
        self.harness.collect()

    @precondition(lambda self: self.expected)
    @rule()
    def workers_are_lost(self) -> None:
        self.harness.worker = StepExecutor(self.harness.config.block_size, self.num_blocks)
        self.harness.scheduler.reset(self.num_blocks)

    @rule()
    def finish_everything(self) -> None:
        self.harness.run()
        for stream, (tokens, reason) in self.expected.items():
            if stream in self.cancelled:
                assert self.harness.tokens[stream] == tokens[: len(self.harness.tokens[stream])]
                continue
            assert stream in self.harness.ended, "starved"
            assert self.harness.tokens[stream] == tokens
            assert self.harness.ended[stream].reason is reason
        assert self.harness.scheduler.load.num_free_blocks == self.num_blocks
        assert self.harness.scheduler.load.num_running == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "harness"):
            self.harness.scheduler.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.finish_everything()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
