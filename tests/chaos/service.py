"""A real service whose processes can be killed, and which knows what must not be left of it."""

import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import psutil

from pagewire_client import Client, LocalService, RetryPolicy, UnavailableError

VICTIMS = {
    "worker": "gpu_worker",
    "scheduler": "scheduler_service.core",
    "gateway": "scheduler_service.gateway",
}
"""What can be killed, and the module in its command line."""

# A request that nobody has accepted is its caller's to send again, for as long as the engine takes to come back.
_PATIENT = RetryPolicy(max_attempts=100)
_READY_S = 120.0
_FIND_S = 60.0
_IDLE_S = 30.0
_END_S = 10.0
_SHARED_MEMORY = Path("/dev/shm")
_SYSV_SHARED_MEMORY = Path("/proc/sysvipc/shm")


class ChaosService:
    """A service over several gateways, in a directory that is empty before and after. `client` knows all of them."""

    def __init__(self, model: Path, run_dir: Path, num_gateways: int, *flags: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._seen: set[psutil.Process] = set()
        self._shared_memory: set[Path] = set()
        self._service = LocalService(
            str(model), flags=["--run-dir", str(run_dir), "--gateways", str(num_gateways), "--no-progress", *flags]
        )
        self._service.wait_until_ready(_READY_S)
        assert len(self._service.addresses) == num_gateways
        self.client = Client(",".join(self._service.addresses), retry=_PATIENT)

    def processes(self, victim: str) -> list[psutil.Process]:
        """Running processes of one kind."""
        found = []
        children = psutil.Process(self._service._process.pid).children(recursive=True)
        self._seen.update(children)
        for process in children:
            with suppress(psutil.NoSuchProcess):
                if VICTIMS[victim] in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def find(self, victim: str, choice: random.Random, other_than: Collection[psutil.Process] = ()) -> psutil.Process:
        """A process of a kind, once there is one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [process for process in self.processes(victim) if process not in other_than]
            return bool(found)

        wait_until(look, _FIND_S, f"no {victim} comes")
        return choice.choice(found)

    def kill(self, *processes: psutil.Process) -> None:
        """SIGKILL to all of them, at once."""
        for process in processes:
            self._note_shared_memory(process)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def leaks(self) -> list[str]:
        """What is held although nothing runs: blocks or sequences."""

        def is_idle() -> bool:
            info = self.client.server_info()
            free = info.load.num_free_blocks == info.limits.num_blocks
            return free and info.load.num_running == info.load.num_waiting == 0

        try:
            self.client.wait_until_ready(_READY_S)
            wait_until(is_idle, _IDLE_S, "not idle")
        except UnavailableError as error:
            return [str(error)]
        except TimeoutError:
            return [f"blocks or sequences are leaked: {self.client.server_info()}"]
        return []

    def close(self) -> list[str]:
        """Stop everything; says what is left: processes, sockets, files, shared memory."""
        for victim in VICTIMS:
            for process in self.processes(victim):
                self._note_shared_memory(process)
        self.client.close()
        self._service.close()
        _, alive = psutil.wait_procs({*self._seen, *self._processes_of_run_dir()}, timeout=_END_S)
        left = [f"process {process.pid} is left" for process in alive]
        left += [f"{path} is left" for path in [*self._run_dir.rglob("*"), *self._left_shared_memory()]]
        return left + [f"System V shared memory of process {pid} is left" for pid in self._sysv_creators()]

    def _processes_of_run_dir(self) -> list[psutil.Process]:
        """Those that nobody saw as children: their command lines name the directory."""
        processes = psutil.process_iter(["cmdline"])
        return [process for process in processes if str(self._run_dir) in " ".join(process.info["cmdline"] or ())]

    def _note_shared_memory(self, process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            paths = {Path(area.path.removesuffix(" (deleted)")) for area in process.memory_maps()}
            self._shared_memory |= {path for path in paths if path.is_relative_to(_SHARED_MEMORY)}

    def _left_shared_memory(self) -> list[Path]:
        """Files that a process was seen to use, and those whose name has its process id."""
        pids = {str(process.pid) for process in self._seen}
        named = [path for path in _SHARED_MEMORY.iterdir() if not pids.isdisjoint(path.name.split("_"))]
        return [*named, *(path for path in self._shared_memory if path.exists())]

    def _sysv_creators(self) -> list[int]:
        pids = {process.pid for process in self._seen}
        header, *rows = [line.split() for line in _SYSV_SHARED_MEMORY.read_text().splitlines()]
        return [pid for row in rows if (pid := int(row[header.index("cpid")])) in pids]


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
