"""Drives a Scheduler against the dictionary worker and collects what each stream gets."""

from collections import defaultdict

import numpy as np
from msgspec import structs

from pagewire.ipc.requests import Ended, StepTokens, Submit, logprob_record_bytes
from scheduler_service.core.admission import Refusal
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.orphans import check_resume
from scheduler_service.core.scheduler import Scheduler
from tests.fakes.bare_gateway import make_submit
from tests.fakes.step_executor import StepExecutor, WorkerDiedError, logprob_record

GATEWAY = b"gateway1"


class Harness:
    """One scheduler, one worker, all streams' news."""

    def __init__(self, num_blocks: int = 64, eos: frozenset[int] = frozenset(), **config: object) -> None:
        settings: dict[str, object] = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
        self.config = SchedulerConfig(**(settings | config))  # type: ignore[arg-type]
        self.clock_s = 0.0
        self.metrics = EngineMetrics(self.config.max_num_seqs, 1000, clock=lambda: self.clock_s)
        self.scheduler = Scheduler(self.config, num_blocks, eos, self.metrics)
        self.worker = StepExecutor(self.config.block_size, num_blocks)
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.logprobs: defaultdict[int, bytes] = defaultdict(bytes)
        self.prompt_logprobs: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: dict[int, Ended] = {}
        self.submits: dict[int, Submit] = {}
        self.deadly: dict[tuple[int, ...], int] = {}
        """Token sequences that kill the worker, and how often each did."""

    def add(self, stream_id: int, prompt: list[int], **changes: object) -> None:
        submit = make_submit(stream_id, prompt, **changes)
        assert submit.max_tokens is not None
        self.submits[stream_id] = submit
        self.scheduler.add(GATEWAY, submit, submit.num_prompt_tokens + submit.max_tokens)

    def lose_gateway(self, now_s: float = 0.0) -> None:
        """The gateway is gone, after it has got all news so far."""
        self.collect()
        self.scheduler.orphan_gateway(GATEWAY, now_s)
        self.scheduler.check_integrity()

    def resume(self, stream_id: int, as_stream: int | None = None, **changes: object) -> Refusal | None:
        """Go on with a stream after the tokens it has, as the loop does: attach, or run it again from the tokens."""
        submit = self.submits[stream_id]
        received = np.array(self.tokens[stream_id], dtype=np.int32).tobytes()
        fields: dict[str, object] = {
            "stream_id": stream_id if as_stream is None else as_stream,
            "token_ids": submit.token_ids + received,
            "num_known_prompt_logprobs": self.num_prompt_logprobs(stream_id),
            "resumes": True,
        }
        submit = structs.replace(submit, **(fields | changes))
        assert submit.max_tokens is not None
        max_total_tokens = submit.num_prompt_tokens + submit.max_tokens
        running = self.scheduler.find(submit)
        if running is None:
            self.scheduler.add(GATEWAY, submit, max_total_tokens)
            return None
        refusal = check_resume(running, submit, max_total_tokens)
        if refusal is None:
            self.scheduler.attach(running, GATEWAY, submit)
        return refusal

    def abort(self, stream_id: int) -> None:
        self.scheduler.abort(GATEWAY, stream_id)

    def schedule(self) -> bool:
        """Send one step if there is one."""
        batch = self.scheduler.schedule() if self.scheduler.can_schedule else None
        self.scheduler.check_integrity()
        if batch is not None:
            self.worker.send(batch)
        return batch is not None

    def finish_step(self) -> bool:
        """Let the worker finish its oldest step."""
        if not self.worker.queue:
            return False
        try:
            output = self.worker.run_next()
        except WorkerDiedError as death:
            self.deadly[tuple(death.args[0])] += 1
            self.lose_worker()
            return True
        self.scheduler.update(output)
        self.scheduler.check_integrity()
        self.collect()
        return True

    def kill_when_computing(self, token_ids: list[int]) -> None:
        """The last of these tokens, after the others, kills each worker that computes it."""
        self.deadly[tuple(token_ids)] = 0
        self.worker.deadly = frozenset(self.deadly)

    def give_nan_when_computing(self, token_ids: list[int]) -> None:
        """The last of these tokens, after the others, makes a sequence ill."""
        self.worker.ill |= {tuple(token_ids)}

    def lose_worker(self) -> None:
        """The worker died: another takes its place."""
        num_blocks = self.worker.num_blocks
        self.worker = StepExecutor(
            self.config.block_size, num_blocks, deadly=frozenset(self.deadly), ill=self.worker.ill
        )
        self.scheduler.reset(num_blocks)
        self.scheduler.check_integrity()
        self.collect()

    def collect(self) -> None:
        for _, message in self.scheduler.take_outputs():
            self.take(message)

    def take(self, message: StepTokens) -> None:
        streams = np.frombuffer(message.stream_ids, dtype=np.uint32).tolist()
        for stream, token in zip(streams, np.frombuffer(message.token_ids, dtype=np.int32).tolist(), strict=True):
            assert stream not in self.ended, "a token after the end"
            self.tokens[stream].append(token)
        for stream, records in message.logprobs.items():
            self.logprobs[stream] += records
        for stream, records in message.prompt_logprobs.items():
            self.prompt_logprobs[stream] += records
        for ended in message.ended:
            assert ended.stream_id not in self.ended, "a stream ended twice"
            self.ended[ended.stream_id] = ended

    def check_logprobs(self, stream_id: int) -> None:
        """Assert that each token of a stream came with its log probabilities, if they were wanted."""
        submit = self.submits[stream_id]
        token_ids = np.frombuffer(submit.token_ids, dtype=np.int32).tolist() + self.tokens[stream_id]
        starts = range(len(token_ids) - len(self.tokens[stream_id]), len(token_ids))
        records = [logprob_record(token_ids[:start], submit.sampling.num_logprobs) for start in starts]
        assert self.logprobs[stream_id] == b"".join(records)

    def num_prompt_logprobs(self, stream_id: int) -> int:
        """Records of its prompt's tokens that a stream has."""
        num_logprobs = self.submits[stream_id].sampling.num_prompt_logprobs
        return len(self.prompt_logprobs[stream_id]) // logprob_record_bytes(num_logprobs or 0)

    def check_prompt_logprobs(self, stream_id: int) -> None:
        """Assert that a stream got the log probabilities of its prompt's tokens once, if they were wanted: all before
        its first token."""
        submit = self.submits[stream_id]
        prompt = np.frombuffer(submit.token_ids, dtype=np.int32)[: submit.num_prompt_tokens].tolist()
        records = [logprob_record(prompt[:end], submit.sampling.num_prompt_logprobs) for end in range(1, len(prompt))]
        if self.tokens[stream_id]:
            assert self.prompt_logprobs[stream_id] == b"".join(records)
        else:
            assert b"".join(records).startswith(self.prompt_logprobs[stream_id])

    def run(self, max_steps: int = 10_000) -> None:
        """Run until nothing is left to do."""
        for _ in range(max_steps):
            while self.schedule():
                pass
            if not self.finish_step():
                return
        raise AssertionError("the scheduler does not come to an end")
