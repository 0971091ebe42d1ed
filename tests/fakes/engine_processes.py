"""A scheduler process and its worker processes, which a test speaks to as a gateway."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagewire.ipc.requests import Sampling
from tests.fakes.bare_gateway import BareGateway, make_submit
from tests.fakes.patience import PATIENCE_S


class Engine:
    """A scheduler and its ranks, each with one thread, and a gateway socket."""

    def __init__(self, model: Path, folder: Path, num_ranks: int, *worker_flags: str) -> None:
        folder.mkdir()
        self._requests, workers = f"ipc://{folder}/r", f"ipc://{folder}/w"
        size = ["--tensor-parallel-size", str(num_ranks)]
        scheduler = [sys.executable, "-m", "scheduler_service.core", "--request-address", self._requests, *size]
        worker = [sys.executable, "-m", "gpu_worker", "--model", str(model), "--scheduler-address", workers, *size]
        worker += ["--device", "cpu", "--threads", "1", "--cpu-memory-gib", "0.5", "--log-level", "warning"]
        worker += ["--distributed-address", f"file:{folder}/ranks", *worker_flags]
        self._scheduler = subprocess.Popen([*scheduler, "--worker-address", workers], stdout=subprocess.DEVNULL)
        self.ranks = [
            subprocess.Popen([*worker, "--rank", str(rank)], stderr=subprocess.PIPE, text=True)
            for rank in range(num_ranks)
        ]
        self.gateway = BareGateway(self._requests)

    def run(self, prompts: list[list[int]], samplings: list[Sampling], max_tokens: int) -> list[list[int]]:
        """Every prompt with every sampling, all at once; their tokens."""
        requests = [(prompt, sampling) for prompt in prompts for sampling in samplings]
        for number, (prompt, sampling) in enumerate(requests):
            self.gateway.send(make_submit(number, prompt, max_tokens=max_tokens, sampling=sampling))
        self.gateway.wait(lambda: len(self.gateway.ended) == len(requests))
        return [self.gateway.tokens[number] for number in range(len(requests))]

    def close(self) -> None:
        self.gateway.close()
        for process in (self._scheduler, *self.ranks):
            process.kill()
        for process in (self._scheduler, *self.ranks):
            process.communicate(timeout=PATIENCE_S)


@contextmanager
def engine(model: Path, folder: Path, num_ranks: int, *worker_flags: str) -> Iterator[Engine]:
    running = Engine(model, folder, num_ranks, *worker_flags)
    try:
        running.gateway.wait_ready()
        yield running
    finally:
        running.close()
