"""What does a worker process do with each message of the scheduler, and when does it speak first?

    WorkerHello, again and again -> EngineConfig: load, WorkerLoaded -> AllocateCache: WorkerReady -> StepBatch ...

Only an EngineConfig may come from a scheduler that this worker does not follow yet: it then follows that one, with
empty slots. Weights and KV memory stay unless the sizes differ. While nothing happens the worker keeps greeting, so a
restarted scheduler hears of it within a second.
"""

import logging
import os
import time
from collections.abc import Callable

import torch

from gpu_worker.attention.select import AttentionBackendError
from gpu_worker.config import WorkerConfig
from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.input_batch import StepBatchError
from gpu_worker.kv_cache import CacheTooSmallError
from gpu_worker.model_runner import ModelRunner
from gpu_worker.scheduler_link import AddressError, SchedulerLink
from pagewire.ipc.codec import ANY, Envelope
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    ResetSlots,
    SchedulerStepMessage,
    StepBatch,
    WorkerFailed,
    WorkerHello,
    WorkerLoaded,
    WorkerProgress,
    WorkerReady,
)

logger = logging.getLogger(__name__)

_GREETING_PERIOD_S = 0.1
_IDLE_GREETING_PERIOD_S = 1.0
_PROGRESS_PERIOD_S = 0.1
_FAREWELL_S = 1.0
# Failures whose message is meant for people.
_EXPLAINED = (
    AddressError,
    AttentionBackendError,
    CacheTooSmallError,
    ModelLoadError,
    StepBatchError,
)


class Worker:
    """One rank: follows a scheduler and executes its steps in order.

    Args:
        hello: what this worker greets with.
    """

    def __init__(self, hello: WorkerHello, runner: ModelRunner, link: SchedulerLink) -> None:
        self._hello = hello
        self._runner = runner
        self._link = link
        self._scheduler = ANY

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
            self._link.send(WorkerFailed(self._hello.rank, _describe(error)), self._scheduler)
            linger_s = _FAREWELL_S
            raise
        finally:
            self._link.close(linger_s)

    def _turn(self) -> None:
        """Greet if nobody speaks, else do what the next message says."""
        following = self._scheduler != ANY
        envelope = self._link.receive(_IDLE_GREETING_PERIOD_S if following else _GREETING_PERIOD_S)
        if envelope is None:
            self._link.send(self._hello, ANY)
        elif isinstance(envelope.message, EngineConfig):
            self._configure(envelope.sender, envelope.message)
        elif envelope.sender != self._scheduler:
            self._link.drop("it is from a scheduler that this worker does not follow")
        else:
            self._handle(envelope)

    def _handle(self, envelope: Envelope[SchedulerStepMessage]) -> None:
        message = envelope.message
        if isinstance(message, StepBatch):
            if not self._runner.is_ready:
                self._link.drop("a step came before the KV cache was allocated")
                return
            output = self._runner.execute(message)
            if self._hello.rank == 0:
                self._link.send(output, self._scheduler)
        elif isinstance(message, AllocateCache):
            self._report_progress("allocating KV cache", 0, 0)
            self._runner.allocate(message.num_blocks)
            self._link.send(WorkerReady(self._hello.rank), self._scheduler)
        elif isinstance(message, ResetSlots):
            self._runner.reset_slots()

    def _configure(self, scheduler: bytes, engine: EngineConfig) -> None:
        """Follow this scheduler and have what it wants loaded."""
        if scheduler != self._scheduler:
            logger.info("following scheduler incarnation=%s", scheduler.hex())
            self._scheduler = scheduler
            self._runner.reset_slots()
        num_blocks, model = self._runner.load(engine, self._throttled_progress("loading weights"))
        self._link.send(WorkerLoaded(self._hello.rank, num_blocks, model), scheduler)

    def _throttled_progress(self, stage: str) -> Callable[[int, int], None]:
        """A callback that passes on the first, the last, and a few reports a second in between."""
        last_s = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last_s
            now_s = time.monotonic()
            if done == total or now_s - last_s >= _PROGRESS_PERIOD_S:
                last_s = now_s
                self._report_progress(stage, done, total)

        return report

    def _report_progress(self, stage: str, done: int, total: int) -> None:
        self._link.send(WorkerProgress(self._hello.rank, stage, done, total), self._scheduler)


def run_worker(config: WorkerConfig) -> str | None:
    """Run a worker until it fails; returns why, in one line."""
    torch.set_num_threads(config.threads)
    hello = WorkerHello(config.rank, config.tensor_parallel_size, os.getpid())
    try:
        Worker(hello, ModelRunner(config), SchedulerLink(config.scheduler_address)).run()
    except Exception as error:
        return _describe(error)
    return None


def _describe(error: Exception) -> str:
    """An exception in one line for a person: led by its type, unless its message was written for people."""
    message = " ".join(str(error).split())
    return message if isinstance(error, _EXPLAINED) else f"{type(error).__name__}: {message}"
