"""One engine in full detail: the real scheduler, in virtual time, over a GPU that is a model of step times.

Nothing of the scheduler is imitated: its messages for the gateways are those that would go over the wire.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.scaling.shapes import ModelShape
from benchmarks.scaling.step_time import Step, StepTimeModel
from pagewire.ipc.cache_events import CacheEvents
from pagewire.ipc.requests import Load, Sampling, StepTokens, Submit
from pagewire.ipc.steps import StepBatch, StepOutput
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.scheduler import Scheduler

_SAMPLING = Sampling(0.6, 0, 1.0, 0.0, 0)
_ANY_TOKEN = 7


@dataclass(frozen=True, slots=True)
class GpuStep:
    """A step at the GPU, which ends at `end_s`."""

    end_s: float
    output: StepOutput


class SimulatedGpu:
    """Runs step batches one after the other; mirrors of each slot how many tokens are computed, as the worker does."""

    def __init__(self, model: StepTimeModel, shape: ModelShape, max_num_seqs: int) -> None:
        self._model = model
        self._shape = shape
        self._computed: npt.NDArray[np.int64] = np.zeros(max_num_seqs, dtype=np.int64)
        self._tokens = np.full(max_num_seqs, _ANY_TOKEN, dtype=np.int32)
        self._free_s = 0.0
        self.busy_s = 0.0
        self.num_steps = 0
        self.queue: deque[GpuStep] = deque()

    @property
    def token(self) -> int:
        """What it always draws."""
        return _ANY_TOKEN

    def launch(self, batch: StepBatch, now_s: float) -> None:
        """Queue a step."""
        for added in batch.added:
            self._computed[added.slot] = added.num_computed_tokens
        seconds = self._model.seconds(self._shape, self._measure(batch))
        self._free_s = max(now_s, self._free_s) + seconds
        self.busy_s += seconds
        self.num_steps += 1
        num_sampled = batch.sampled.count(1)
        output = StepOutput(batch.step_id, self._tokens[:num_sampled].tobytes(), bytes(num_sampled))
        self.queue.append(GpuStep(self._free_s, output))

    def _measure(self, batch: StepBatch) -> Step:
        slots = np.frombuffer(batch.slots, dtype=np.int32)
        counts = np.frombuffer(batch.num_tokens, dtype=np.int32).astype(np.int64)
        before = self._computed[slots]
        after = before + counts
        self._computed[slots] = after
        is_decode = counts == 1
        prompts = ~is_decode
        attended = float(np.sum(after[prompts] ** 2 - before[prompts] ** 2)) / 2
        return Step(
            int(np.count_nonzero(is_decode)), float(after[is_decode].sum()), int(counts[prompts].sum()), attended
        )


@dataclass(slots=True)
class Life:
    """One request: when it came, got its first token, and ended (seconds), and its lengths."""

    arrived_s: float
    num_prompt: int
    num_answered: int
    first_s: float | None = None
    ended_s: float | None = None
    num_cached: int = 0


class DetailedEngine:
    """A scheduler and its GPU. Steps go by themselves: `next_end_s` tells when, `finish_step` does it.

    Args:
        on_tokens, on_cache: told each message for a gateway.
    """

    def __init__(
        self,
        model: StepTimeModel,
        shape: ModelShape,
        config: SchedulerConfig,
        num_blocks: int,
        on_tokens: Callable[[bytes, StepTokens], None] = lambda gateway, message: None,
        on_cache: Callable[[bytes, CacheEvents], None] = lambda gateway, message: None,
    ) -> None:
        self.now_s = 0.0
        self.lives: dict[int, Life] = {}
        self.num_tokens = 0
        self.gpu = SimulatedGpu(model, shape, config.max_num_seqs)
        metrics = EngineMetrics(config.max_num_seqs, 1 << 15, clock=lambda: self.now_s)
        self._scheduler = Scheduler(config, num_blocks, frozenset(), metrics)
        self._on_tokens, self._on_cache = on_tokens, on_cache
        self._num_requests = 0

    @property
    def load(self) -> Load:
        """What the engine would tell its gateways."""
        return self._scheduler.load

    def watch_cache(self, gateway: bytes) -> None:
        """Tell this gateway what is cached."""
        self._scheduler.watch_cache(gateway)

    def submit(self, gateway: bytes, token_ids: npt.NDArray[np.int32], num_answered: int, now_s: float) -> int:
        """A request comes; returns its number."""
        self.now_s = now_s
        number = self._num_requests
        self._num_requests += 1
        submit = Submit(
            stream_id=number,
            request_id=str(number),
            token_ids=token_ids.tobytes(),
            num_prompt_tokens=len(token_ids),
            sampling=_SAMPLING,
            max_tokens=num_answered,
            min_tokens=0,
            stop_token_ids=(),
            ignore_eos=True,
            priority=0,
            cache_salt="",
            deadline_s=None,
        )
        self.lives[number] = Life(now_s, len(token_ids), num_answered)
        self._scheduler.add(gateway, submit, len(token_ids) + num_answered)
        self._turn()
        return number

    @property
    def next_end_s(self) -> float | None:
        """When the step at the GPU ends, if there is one."""
        return self.gpu.queue[0].end_s if self.gpu.queue else None

    def finish_step(self) -> list[int]:
        """The step at the GPU ends; returns the numbers of the requests that end with it."""
        step = self.gpu.queue.popleft()
        self.now_s = step.end_s
        self._scheduler.update(step.output)
        return self._turn()

    def _turn(self) -> list[int]:
        """As the scheduler's loop: schedule, send, deliver."""
        while self._scheduler.can_schedule and (batch := self._scheduler.schedule()) is not None:
            self.gpu.launch(batch, self.now_s)
        ended: list[int] = []
        for gateway, message in self._scheduler.take_outputs():
            self._note(message)
            ended += [end.stream_id for end in message.ended]
            self._on_tokens(gateway, message)
        if self._scheduler.journal.is_kept:
            for gateway, events in self._scheduler.journal.take_messages():
                self._on_cache(gateway, events)
        return ended

    def _note(self, message: StepTokens) -> None:
        for started in message.started:
            self.lives[started.stream_id].num_cached = started.num_cached_tokens
        streams = np.frombuffer(message.stream_ids, dtype=np.uint32).tolist()
        self.num_tokens += len(streams)
        for stream in streams:
            life = self.lives[stream]
            if life.first_s is None:
                life.first_s = self.now_s
        for end in message.ended:
            self.lives[end.stream_id].ended_s = self.now_s
