"""What stands between clients and a worker that only counts: gateways and a scheduler, all real processes."""

import math
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from scheduler_service.bench.scheduler import fake_worker
from scheduler_service.supervisor.dummy_model import write_dummy

_STOP_S = 20.0


class StubService:
    """Runs while it is entered. `addresses` are gRPC targets, one of each gateway; the model is the tiny dummy one.

    Args:
        max_num_seqs: most sequences in one step.
        num_blocks: KV blocks of the pool.
        num_gateways: gateway processes.
        steps_per_s: of the worker; by default it answers at once.
        flags: further ones of the scheduler.
    """

    def __init__(
        self,
        max_num_seqs: int,
        num_blocks: int,
        num_gateways: int = 1,
        steps_per_s: float = math.inf,
        flags: Sequence[str] = (),
    ) -> None:
        self._limits = ["--max-num-seqs", str(max_num_seqs), "--num-blocks", str(num_blocks), *flags]
        self._num_gateways = num_gateways
        self._steps_per_s = steps_per_s
        self._stack = ExitStack()
        self.addresses: list[str] = []
        self.gateways: list[psutil.Process] = []
        self.scheduler: psutil.Process

    @property
    def address(self) -> str:
        """Of the first gateway."""
        return self.addresses[0]

    @property
    def gateway(self) -> psutil.Process:
        """The first one."""
        return self.gateways[0]

    def __enter__(self) -> Self:
        with self._stack:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            requests, workers = f"ipc://{folder}/r", f"ipc://{folder}/w"
            self.scheduler = self._start(
                "scheduler_service.core", "--request-address", requests, "--worker-address", workers, *self._limits
            )
            self._start_worker(workers)
            model = ["--model", str(write_dummy("tiny", folder)), "--model-name", "tiny"]
            for number in range(self._num_gateways):
                address = f"unix:{folder}/g{number}"
                flags = ["--scheduler-address", requests, "--listen", address, *model]
                self.gateways.append(self._start("scheduler_service.gateway", *flags))
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

    def _start_worker(self, address: str) -> None:
        fork = multiprocessing.get_context("spawn")
        worker = fork.Process(target=fake_worker, args=(address, self._steps_per_s), daemon=True)
        worker.start()
        self._stack.callback(worker.kill)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.communicate(timeout=_STOP_S)
