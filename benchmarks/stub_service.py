"""What stands between clients and a worker that answers at once: one gateway and one scheduler, both real processes."""

import multiprocessing
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from scheduler_service.bench.scheduler import fake_worker
from scheduler_service.supervisor.dummy_model import write_dummy

_STOP_S = 20.0


class StubService:
    """Runs while it is entered. `address` is a gRPC target; the model is the tiny dummy one.

    Args:
        max_num_seqs: most sequences in one step.
        num_blocks: KV blocks of the pool.
    """

    def __init__(self, max_num_seqs: int, num_blocks: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._num_blocks = num_blocks
        self._stack = ExitStack()
        self.address = ""
        self.gateway: psutil.Process
        self.scheduler: psutil.Process

    def __enter__(self) -> Self:
        with self._stack:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            requests, workers = f"ipc://{folder}/r", f"ipc://{folder}/w"
            self.address = f"unix:{folder}/g"
            limits = ["--max-num-seqs", str(self._max_num_seqs), "--num-blocks", str(self._num_blocks)]
            self.scheduler = self._start(
                "scheduler_service.core", "--request-address", requests, "--worker-address", workers, *limits
            )
            self._start_worker(workers)
            model = ["--model", str(write_dummy("tiny", folder)), "--model-name", "tiny"]
            self.gateway = self._start(
                "scheduler_service.gateway", "--scheduler-address", requests, "--listen", self.address, *model
            )
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
        worker = multiprocessing.get_context("spawn").Process(target=fake_worker, args=(address,), daemon=True)
        worker.start()
        self._stack.callback(worker.kill)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.communicate(timeout=_STOP_S)
