"""What stands between clients and workers that only count: gateways and schedulers, all real processes."""

import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from pagewire.ipc.steps import StepBatch
from scheduler_service.bench.scheduler import fake_worker
from scheduler_service.supervisor.dummy_model import write_dummy

_STOP_S = 20.0


class StepRate:
    """The pace of a worker that does so many steps a second, whatever is in them."""

    def __init__(self, steps_per_s: float) -> None:
        self._step_s = 1 / steps_per_s
        self._done_s = 0.0

    def __call__(self, batch: StepBatch) -> float:
        """When this step is done."""
        self._done_s = max(self._done_s + self._step_s, time.monotonic())
        return self._done_s


class StubService:
    """Runs while it is entered. `addresses` are gRPC targets, one of each gateway; the model is the tiny dummy one.

    Args:
        max_num_seqs: most sequences in one step of a scheduler.
        num_blocks: KV blocks of a scheduler's pool.
        num_gateways: gateway processes.
        steps_per_s: of the worker; by default it answers at once.
        flags: further ones of the schedulers.
        paces: of the workers in place of steps_per_s; there are as many schedulers.
        gateway_flags: further ones of the gateways.
    """

    def __init__(
        self,
        max_num_seqs: int,
        num_blocks: int,
        num_gateways: int = 1,
        steps_per_s: float = math.inf,
        flags: Sequence[str] = (),
        paces: Sequence[Callable[[StepBatch], float]] = (),
        gateway_flags: Sequence[str] = (),
    ) -> None:
        self._limits = ["--max-num-seqs", str(max_num_seqs), "--num-blocks", str(num_blocks), *flags]
        self._num_gateways = num_gateways
        self._paces = paces or [StepRate(steps_per_s)]
        self._gateway_flags = gateway_flags
        self._stack = ExitStack()
        self.addresses: list[str] = []
        self.gateways: list[psutil.Process] = []
        self.schedulers: list[psutil.Process] = []

    @property
    def address(self) -> str:
        """Of the first gateway."""
        return self.addresses[0]

    @property
    def gateway(self) -> psutil.Process:
        """The first one."""
        return self.gateways[0]

    @property
    def scheduler(self) -> psutil.Process:
        """The first one."""
        return self.schedulers[0]

    def __enter__(self) -> Self:
        with self._stack:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            flags = ["--model", str(write_dummy("tiny", folder)), "--model-name", "tiny", *self._gateway_flags]
            for number, pace in enumerate(self._paces):
                requests = f"ipc://{folder}/r{number}"
                self._start_engine(requests, f"ipc://{folder}/w{number}", pace)
                flags += ["--scheduler-address", requests]
            for number in range(self._num_gateways):
                address = f"unix:{folder}/g{number}"
                self.gateways.append(self._start("scheduler_service.gateway", "--listen", address, *flags))
                self.addresses.append(address)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, module: str, *flags: str) -> psutil.Process:
        command = [sys.executable, "-m", module, "--log-level", "warning", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._stack.callback(_stop, process)
        assert process.stdout is not None
        # It says that it listens.
        process.stdout.readline()
        return psutil.Process(process.pid)

    def _start_engine(self, requests: str, workers: str, pace: Callable[[StepBatch], float]) -> None:
        addresses = ["--request-address", requests, "--worker-address", workers]
        self.schedulers.append(self._start("scheduler_service.core", *addresses, *self._limits))
        worker = multiprocessing.get_context("spawn").Process(target=fake_worker, args=(workers, pace), daemon=True)
        worker.start()
        self._stack.callback(worker.kill)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.communicate(timeout=_STOP_S)
