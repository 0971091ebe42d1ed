"""What does a worker process do with each message of the scheduler, and when does it speak first?

    WorkerHello, again and again -> JoinGroup, if there are several ranks: meet them
        -> EngineConfig: load, WorkerLoaded -> AllocateCache: WorkerReady -> StepBatch ...

Only JoinGroup and EngineConfig may come from a scheduler that this worker does not follow yet: with the latter it
follows that one, with empty slots. Weights and KV memory stay unless the sizes differ, and the new scheduler is told
what the blocks hold. While nothing happens the worker keeps greeting, so a restarted scheduler hears of it within a
second.
"""

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import torch

from gpu_worker.attention.select import AttentionBackendError
from gpu_worker.config import WorkerConfig
from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.input_batch import StepBatchError
from gpu_worker.kv_cache import CacheTooSmallError, ModelTooLargeError
from gpu_worker.model_runner import DeviceError, ModelRunner, OnProgress, PendingStep
from gpu_worker.parallel import RanksLostError
from gpu_worker.scheduler_link import AddressError, SchedulerLink
from gpu_worker.stop import Stop
from pagewire.ipc.chrome_trace import NO_TRACE, Recorder
from pagewire.ipc.codec import ANY, Envelope
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    JoinGroup,
    LeftSequence,
    SchedulerStepMessage,
    WorkerFailed,
    WorkerHello,
    WorkerLoaded,
    WorkerProgress,
    WorkerReady,
)
from pagewire.ipc.supervision import NO_HEART, Heart, ProcessState

if TYPE_CHECKING:
    from gpu_worker.slot_spans import SlotSpans
    from pagewire.ipc.spans import Tracer

logger = logging.getLogger(__name__)

_GREETING_PERIOD_S = 0.1
_IDLE_GREETING_PERIOD_S = 1.0
_PROGRESS_PERIOD_S = 0.1
_FAREWELL_S = 1.0
# Steps enqueued on the device before the oldest is waited for. The scheduler is one ahead; more are prompt chunks.
_MOST_PENDING = 4
# Failures whose message is meant for people.
_EXPLAINED = (
    AddressError,
    AttentionBackendError,
    CacheTooSmallError,
    DeviceError,
    ModelLoadError,
    ModelTooLargeError,
    RanksLostError,
    StepBatchError,
)


class Worker:
    """One rank: follows a scheduler, launches its steps in order, and answers each once it is done.

    Args:
        hello: what this worker greets with.
        patience_s: a step of several ranks that runs for longer waits for a rank that is gone or hangs.
        recorder: told what launching and answering each step takes.
        heart: told what is begun and done.
        spans: told of each step, if this worker traces.
        stop: says when to end.
    """

    def __init__(
        self,
        hello: WorkerHello,
        runner: ModelRunner,
        link: SchedulerLink,
        patience_s: float,
        recorder: Recorder = NO_TRACE,
        heart: Heart = NO_HEART,
        spans: "SlotSpans | None" = None,
        stop: Stop | None = None,
    ) -> None:
        self._hello = hello
        self._runner = runner
        self._link = link
        self._patience_s = patience_s if hello.world_size > 1 else float("inf")
        self._recorder = recorder
        self._heart = heart
        self._spans = spans
        self._stop = stop or Stop()
        self._scheduler = ANY
        self._left: tuple[LeftSequence, ...] = ()
        self._pending: deque[PendingStep] = deque()

    def run(self) -> None:
        """Serve until an exception ends it, of which the scheduler is told.

        Raises:
            Exception: whatever made loading or executing a step impossible.
        """
        linger_s = 0.0
        try:
            while True:
                self._turn()
        except Exception as error:
            logger.debug("worker fails", exc_info=True)
            self._link.send(WorkerFailed(self._hello.rank, describe(error)), self._scheduler)
            linger_s = _FAREWELL_S
            raise
        finally:
            self._link.close(linger_s)
            self._recorder.close()
            if self._spans is not None:
                self._spans.close()

    def _turn(self) -> None:
        """Do what the next message says, or pass on what is done, or greet if nobody speaks."""
        envelope = self._link.receive(self._idle_s)
        self._stop.check(has_scheduler=self._link.is_connected)
        if envelope is not None:
            self._take(envelope)
        elif not self._pending:
            self._link.send(self._hello, ANY)
            if self._spans is not None:
                self._spans.note_idle()
            self._note_rest()
        if self._pending and (self._pending[0].is_done or len(self._pending) >= _MOST_PENDING):
            self._answer(self._pending.popleft())
        elif self._pending and time.monotonic() - self._pending[0].launched_s > self._patience_s:
            raise RanksLostError(f"a step runs for more than {self._patience_s:.0f} s: another rank is gone or hangs")

    @property
    def _idle_s(self) -> float:
        """How long to wait for a message: not at all while steps run, whose end nothing else announces."""
        if self._pending:
            return 0.0
        return _GREETING_PERIOD_S if self._scheduler == ANY else _IDLE_GREETING_PERIOD_S

    def _take(self, envelope: Envelope[SchedulerStepMessage]) -> None:
        message = envelope.message
        if isinstance(message, JoinGroup):
            self._finish_pending()
            self._runner.join(message.name)
            self._hello = msgspec.structs.replace(self._hello, group=message.name)
        elif isinstance(message, EngineConfig) and self._hello.world_size > 1 and not self._hello.group:
            self._link.drop("there was no group to join before")
        elif isinstance(message, EngineConfig):
            self._configure(envelope.sender, message)
        elif envelope.sender != self._scheduler:
            self._link.drop("it is from a scheduler that this worker does not follow")
        elif isinstance(message, AllocateCache):
            self._finish_pending()
            was_there = self._runner.allocate(message.num_blocks, self._throttled_progress())
            self._stop.is_computing = True
            self._link.send(WorkerReady(self._hello.rank, self._left if was_there else ()), self._scheduler)
            self._left = ()
            self._note_rest()
        elif not self._runner.is_ready:
            self._link.drop("a step came before the KV cache was allocated")
        else:
            if not self._pending:
                self._heart.note(ProcessState.BUSY, f"step {message.step_id}")
            start = self._recorder.now()
            self._pending.append(self._runner.launch(message))
            if self._spans is not None:
                self._spans.note_launch(message, self._pending[-1].launched_s)
            self._recorder.add("launch", start, message.step_id)

    def _configure(self, scheduler: bytes, engine: EngineConfig) -> None:
        """Follow this scheduler and have what it wants loaded."""
        self._heart.note(ProcessState.STARTING, "loading")
        self._stop.is_computing = False
        self._finish_pending()
        if scheduler != self._scheduler:
            logger.info("following scheduler incarnation=%s", scheduler.hex())
            self._scheduler = scheduler
            self._left = self._runner.reset_slots() or self._left
        num_blocks, model = self._runner.load(engine, self._throttled_progress())
        self._link.send(WorkerLoaded(self._hello.rank, num_blocks, model), scheduler)

    def _answer(self, step: PendingStep) -> None:
        start = self._recorder.now()
        output = step.output()
        if self._hello.rank == 0:
            self._link.send(output, self._scheduler)
        self._recorder.add("answer", start, output.step_id)
        span_ns = step.device_span_ns()
        if span_ns is not None:
            self._recorder.add_device_step(span_ns, output.step_id)
        if self._spans is not None:
            self._spans.note_answer(step.launched_s, time.monotonic())
        self._heart.note_step()
        if self._pending:
            self._heart.note(ProcessState.BUSY, f"step {self._pending[0].step_id}")
        else:
            self._note_rest()

    def _note_rest(self) -> None:
        """There is nothing to compute now."""
        self._heart.note(ProcessState.IDLE if self._runner.is_ready else ProcessState.STARTING)

    def _finish_pending(self) -> None:
        """Wait for steps whose outcome no longer matters."""
        while self._pending:
            self._pending.popleft().output()

    def _throttled_progress(self) -> OnProgress:
        """A callback that passes on each stage's first and last report, and a few a second in between."""
        last_s, last_stage = 0.0, ""

        def report(stage: str, done: int, total: int) -> None:
            nonlocal last_s, last_stage
            self._heart.note(ProcessState.STARTING, stage)
            now_s = time.monotonic()
            if done == total or stage != last_stage or now_s - last_s >= _PROGRESS_PERIOD_S:
                last_s, last_stage = now_s, stage
                self._link.send(WorkerProgress(self._hello.rank, stage, done, total), self._scheduler)

        return report


def run_worker(
    config: WorkerConfig, heart: Heart = NO_HEART, tracer: "Tracer | None" = None, stop: Stop | None = None
) -> Exception | None:
    """Run a worker until it is told to stop, or fails; returns why."""
    torch.set_num_threads(config.threads)
    hello = WorkerHello(config.rank, config.tensor_parallel_size, os.getpid())
    try:
        recorder = Recorder(f"worker-{config.rank}", config.trace_dir)
        link = SchedulerLink(config.scheduler_address, config.curve_keys)
        heart.incarnation = link.incarnation.hex()
        spans = _slot_spans(tracer, config.rank)
        Worker(hello, ModelRunner(config), link, config.distributed_timeout_s, recorder, heart, spans, stop).run()
    except Exception as error:
        return error
    return None


def _slot_spans(tracer: "Tracer | None", rank: int) -> "SlotSpans | None":
    if tracer is None:
        return None
    from gpu_worker.slot_spans import SlotSpans  # noqa: PLC0415 (imports OpenTelemetry)

    return SlotSpans(tracer, rank)


def describe(error: Exception) -> str:
    """An exception in one line for a person: led by its type, unless its message was written for people."""
    message = " ".join(str(error).split())
    return message if isinstance(error, _EXPLAINED) else f"{type(error).__name__}: {message}"
