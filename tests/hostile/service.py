"""A whole service to attack: two gateways, one with TLS, over a real scheduler whose worker checks every block.

`complaints` is the oracle: what an attack has done to the service that it must not have done.
"""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pagewire.v1 import generate_pb2, inference_pb2
from tests.fakes.certificates import Authority
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.openai_gateway import JSON_HEADERS
from tests.fakes.patience import PATIENCE_S
from tests.fakes.step_executor import complete
from tests.fakes.tiny_model import write_tiny_model
from tests.hostile.waiting import comes_true

NUM_BLOCKS = 2048
_MAX_NUM_SEQS = 64
_PROMPT = [11, 12, 13, 14, 15, 16, 17]
_NUM_TOKENS = 24
_EXPECTED = complete(_PROMPT, _NUM_TOKENS)
# What a burst leaves in allocators and caches is no leak; what grows with every burst is.
MAX_GROWTH_BYTES = 160 << 20
# Epoll, timers and the like, which come with the first need and stay.
_MAX_MORE_FILES = 8
_SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where one gateway listens on 127.0.0.1."""

    grpc_port: int
    http_port: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """What must be the same after an attack, or nearly: of each process in turn."""

    names: tuple[str, ...]
    resident_bytes: tuple[int, ...]
    num_files: tuple[int, ...]


class HostileService:
    """Runs while it is entered.

    `plain` and `encrypted` are the gateways' ports, `authority` signed the certificate of the latter.

    Args:
        folder: an empty one, for models, sockets and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._gateways: list[GatewayProcess] = []
        self._incarnations: list[str] = []
        self._stubs: list[Any] = []
        self.plain: Target
        self.encrypted: Target
        self.authority: Authority

    def __enter__(self) -> Self:
        with self._stack:
            requests, workers = f"ipc://{self._folder}/r", f"ipc://{self._folder}/w"
            limits = ("--max-num-seqs", str(_MAX_NUM_SEQS), "--num-blocks", str(NUM_BLOCKS), "--log-level", "warning")
            addresses = ("--request-address", requests, "--worker-address", workers)
            self._start("scheduler", "scheduler_service.core", *addresses, *limits)
            self._start("worker", "tests.hostile.worker", workers, str(NUM_BLOCKS))
            self.authority = Authority(self._folder / "tls")
            pair = self.authority.issue("server")
            self.plain = self._start_gateway("gateway", requests)
            tls = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
            self.encrypted = self._start_gateway("tls-gateway", requests, *tls)
            self._stubs = [gateway.stub() for gateway in self._gateways]
            self._incarnations = self._read_incarnations()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """Of the plain gateway, for gRPC."""
        return self._gateways[0].address

    def kill(self, name: str) -> None:
        """End one of its processes."""
        _kill(self._processes[name])

    def vitals(self) -> Vitals:
        """What the processes hold now."""
        processes = [psutil.Process(process.pid) for process in self._processes.values()]
        return Vitals(
            tuple(self._processes),
            tuple(process.memory_info().rss for process in processes),
            tuple(process.num_fds() for process in processes),
        )

    def complaints(self, before: Vitals) -> list[str]:
        """What is wrong, now that an attack is over; empty if all is well."""
        if gone := [f"{name} has ended" for name, process in self._processes.items() if process.poll() is not None]:
            return gone + self._logged_faults()
        wrong = self._logged_faults()
        if self._read_incarnations() != self._incarnations:
            wrong.append("a process was started again")
        wrong += [*self._wrong_answers(), *self._kept_blocks(), *self._kept_files(before)]
        for name, was, now in zip(before.names, before.resident_bytes, self.vitals().resident_bytes, strict=True):
            if now - was > MAX_GROWTH_BYTES:
                wrong.append(f"{name} grew from {was >> 20} to {now >> 20} MiB")
        return wrong

    def num_sequences(self) -> int:
        """Sequences that run or wait, at the scheduler's last report."""
        load = self._info().load
        return load.num_running + load.num_waiting

    def check_callers(self) -> list[str]:
        """What is wrong with the answers to those who behave; empty if nothing is."""
        return self._wrong_answers()

    def _wrong_answers(self) -> list[str]:
        wrong = []
        request = generate_pb2.GenerateRequest(
            token_ids={"ids": _PROMPT}, sampling={"temperature": 0}, stopping={"max_tokens": _NUM_TOKENS}
        )
        for stub in self._stubs:
            responses = stub.Generate(request, timeout=PATIENCE_S)
            got = [token_id for response in responses for token_id in response.delta.token_ids]
            if got != _EXPECTED:
                wrong.append(f"Generate gives {got} instead of {_EXPECTED}")
        body = {"prompt": _PROMPT, "temperature": 0, "max_tokens": _NUM_TOKENS, "return_token_ids": True}
        connection = HTTPConnection("127.0.0.1", self.plain.http_port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/completions", json.dumps(body), JSON_HEADERS)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if answer.get("choices", [{}])[0].get("token_ids") != _EXPECTED:
            wrong.append(f"/v1/completions gives {answer}")
        return wrong

    def _kept_blocks(self) -> list[str]:
        def is_idle() -> bool:
            load = self._info().load
            return (load.num_running, load.num_waiting, load.num_free_blocks) == (0, 0, NUM_BLOCKS)

        return [] if comes_true(is_idle, _SETTLE_S) else [f"sequences or blocks are lost: {self._info().load}"]

    def _kept_files(self, before: Vitals) -> list[str]:
        def more() -> list[int]:
            return [now - was for was, now in zip(before.num_files, self.vitals().num_files, strict=True)]

        if comes_true(lambda: max(more()) <= _MAX_MORE_FILES, _SETTLE_S):
            return []
        return [f"files are left open: {dict(zip(before.names, more(), strict=True))}"]

    def _logged_faults(self) -> list[str]:
        faults = []
        for log in self._folder.glob("*.log"):
            lines = log.read_text(errors="replace").splitlines()
            marked = [at for at, line in enumerate(lines) if "Traceback" in line or " ERROR " in line]
            if marked:
                excerpt = "\n    ".join(lines[max(0, marked[0] - 2) : marked[0] + 40])
                faults.append(f"{log.stem} logged {len(marked)} faults, the first:\n    {excerpt}")
        return faults

    def _read_incarnations(self) -> list[str]:
        infos = [stub.GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=PATIENCE_S) for stub in self._stubs]
        return [part for info in infos for part in (info.gateway_incarnation, info.scheduler_incarnation)]

    def _info(self) -> inference_pb2.GetServerInfoResponse:
        info = self._stubs[0].GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=PATIENCE_S)
        assert isinstance(info, inference_pb2.GetServerInfoResponse)
        return info

    def _start(self, name: str, module: str, *arguments: str) -> None:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        self._processes[name] = process
        self._stack.callback(_kill, process)

    def _start_gateway(self, name: str, requests: str, *flags: str) -> Target:
        model = write_tiny_model(self._folder / "model")
        credentials = self.authority.channel_credentials() if flags else None
        flags = ("--http", "127.0.0.1:0", "--channelz", "--log-level", "warning", *flags)
        log = self._folder / f"{name}.log"
        gateway = self._stack.enter_context(GatewayProcess(model, requests, log, *flags, credentials=credentials))
        self._gateways.append(gateway)
        self._processes[name] = gateway.process
        gateway.wait_until_serving()
        return Target(int(gateway.address.rpartition(":")[2]), gateway.http_port())


def _kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
