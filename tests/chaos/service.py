"""A real service whose processes can be killed, and which knows what must not be left of it."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pagewire_client import Client, LocalService

VICTIMS = {
    "worker": "gpu_worker",
    "scheduler": "scheduler_service.core",
    "gateway": "scheduler_service.gateway",
}
"""What can be killed, and the module in its command line."""

_IDLE_S = 20.0
_END_S = 10.0


class ChaosService:
    """A service over several gateways, in a directory that is empty before and after."""

    def __init__(self, model: Path, run_dir: Path, num_gateways: int, *flags: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._seen: set[psutil.Process] = set()
        self._service = LocalService(
            str(model), flags=["--run-dir", str(run_dir), "--gateways", str(num_gateways), "--no-progress", *flags]
        )
        self._service.wait_until_ready(180)
        self.clients = [Client(address) for address in self._service.addresses]
        assert len(self.clients) == num_gateways

    def processes(self, victim: str) -> list[psutil.Process]:
        """Running processes of one kind."""
        found = []
        children = psutil.Process(self._service._process.pid).children(recursive=True)
        self._seen.update(children)
        for process in children:
            try:
                if VICTIMS[victim] in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, victim: str, choice: random.Random) -> int:
        """SIGKILL to one process of a kind, once there is one; gives its pid."""
        wait_until(lambda: bool(self.processes(victim)), 30.0, f"no {victim} to kill")
        process = choice.choice(self.processes(victim))
        process.kill()
        return process.pid

    def leaks(self) -> list[str]:
        """What is held although nothing runs: blocks or sequences."""
        self.clients[0].wait_until_ready(60)

        def is_idle() -> bool:
            info = self.clients[0].server_info()
            free = info.load.num_free_blocks == info.limits.num_blocks
            return free and info.load.num_running == info.load.num_waiting == 0

        try:
            wait_until(is_idle, _IDLE_S, "not idle")
        except TimeoutError:
            return [f"blocks or sequences are leaked: {self.clients[0].server_info().load}"]
        return []

    def close(self) -> list[str]:
        """Stop everything; says what is left: processes, sockets, files."""
        for victim in VICTIMS:
            self.processes(victim)
        for client in self.clients:
            client.close()
        self._service.close()
        _, alive = psutil.wait_procs(self._seen, timeout=_END_S)
        left = [f"process {process.pid} is left" for process in alive]
        return left + [f"{path} is left" for path in self._run_dir.rglob("*")]


def wait_until(condition: Callable[[], bool], limit_s: float, otherwise: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true; with the given message.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.01)
