"""A scheduler as a real process, and the fake workers and bare gateways that are connected to it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.bare_gateway import BareGateway
from tests.fakes.fake_worker import FakeWorker
from tests.fakes.patience import PATIENCE_S


class SchedulerProcess:
    """A scheduler process and what is connected to it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.request_address = f"ipc://{folder}/requests"
        self.worker_address = f"ipc://{folder}/workers"
        command = [sys.executable, "-m", "scheduler_service.core", "--block-size", "4", "--max-num-seqs", "8"]
        command += ["--request-address", self.request_address, "--worker-address", self.worker_address, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert "listening" in self.process.stdout.readline()
        self.gateways: list[BareGateway] = []
        self.workers: list[FakeWorker] = []

    def gateway(self) -> BareGateway:
        self.gateways.append(BareGateway(self.request_address))
        return self.gateways[-1]

    def worker(self, **options: Any) -> FakeWorker:
        self.workers.append(FakeWorker(self.worker_address, **options))
        return self.workers[-1]

    def stop(self, worker: FakeWorker) -> None:
        self.workers.remove(worker)
        worker.stop()

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        for gateway in self.gateways:
            gateway.close()
        self.process.kill()
        self.process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
