"""A rank whose step never ends gives up, since only another rank can be the reason."""

import time
from typing import Any

import pytest

from gpu_worker.execution.executor import StepResult
from gpu_worker.model_runner import PendingStep
from gpu_worker.parallel import RanksLostError
from gpu_worker.worker import Worker
from pagewire.ipc.codec import Envelope
from pagewire.ipc.steps import StepBatch, WorkerFailed, WorkerHello
from tests.fakes.bare_scheduler import make_step

NOBODY = bytes(8)


class Endless:
    """What a step draws that waits for another rank."""

    is_done = False

    def read(self) -> StepResult:
        raise AssertionError("nobody waits for it")


class Runner:
    is_ready = True

    def launch(self, batch: StepBatch) -> PendingStep:
        return PendingStep(batch.step_id, Endless(), time.monotonic(), on_ill=lambda rows: None)


class Link:
    """Brings one step, and keeps what is sent."""

    is_connected = True

    def __init__(self) -> None:
        self.steps = [make_step([0], [1], [1])]
        self.sent: list[Any] = []

    def receive(self, timeout_s: float) -> Envelope[StepBatch] | None:
        return Envelope(NOBODY, NOBODY, self.steps.pop()) if self.steps else None

    def send(self, message: Any, recipient: bytes) -> None:
        self.sent.append(message)

    def close(self, linger_s: float = 0.0) -> None:
        pass


def test_a_step_that_never_ends_is_given_up() -> None:
    runner: Any = Runner()
    link: Any = Link()
    with pytest.raises(RanksLostError, match=r"a step runs for more than 0 s: another rank is gone or hangs"):
        Worker(WorkerHello(1, 2, 0), runner, link, patience_s=0.05).run()
    assert [message for message in link.sent if isinstance(message, WorkerFailed)] == link.sent
    assert len(link.sent) == 1
