"""Are hung processes found and replaced, and does a real service drain and fail as its operator expects?"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagewire_client import Client, Completion, LocalService, SamplingParams, UnavailableError
from pagewire_client.retry import NO_RETRY
from pagewire_client.types import ProcessState

pytestmark = pytest.mark.model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
SMALL = ("--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning", "--heartbeat-timeout", "2")
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
LIMIT_S = 30.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def wait_for(condition, limit_s: float = LIMIT_S) -> float:
    """Seconds until it holds."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < limit_s, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - started_s


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Running:
    """A service with its HTTP port, on a private socket."""

    def __init__(self, model: Path, *flags: str) -> None:
        self.port = free_port()
        self.service = LocalService(str(model), flags=[*SMALL, "--http", f"127.0.0.1:{self.port}", *flags])
        self.service.wait_until_ready(120)
        self.address = self.service.addresses[0]
        self.supervisor = psutil.Process(self.service._process.pid)

    def child(self, name: str) -> psutil.Process:
        (found,) = [p for p in self.supervisor.children() if name in " ".join(p.cmdline())]
        return found

    def health(self, service: str = "") -> object:
        """What grpc.health.v1 says; the status code if nothing answers."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                return health_pb2_grpc.HealthStub(channel).Check(request, timeout=1).status
            except grpc.RpcError as error:
                return error.code()

    @contextmanager
    def watch(self) -> Iterator[Iterator[object]]:
        """Every change of the health."""
        with grpc.insecure_channel(self.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
            yield (response.status for response in watch)

    def http(self, path: str) -> tuple[int, dict]:
        """Status and body; 0 if nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait_until_serving(self) -> None:
        wait_for(lambda: self.health() == SERVING)


@pytest.fixture(scope="module")
def shared(demo_model: Path) -> Iterator[Running]:
    """A service that every test leaves serving."""
    running = Running(demo_model)
    yield running
    running.service.close()


@pytest.fixture
def running(shared: Running) -> Running:
    shared.wait_until_serving()
    return shared


def test_health_says_what_the_service_does(running):
    assert [running.health(name) for name in ("", "pagewire.v1.InferenceService")] == [SERVING, SERVING]
    assert running.http("/healthz")[0] == 200
    wait_for(lambda: running.http("/readyz")[1]["state"] == "idle")
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], LONG) as stream:
        next(stream)
        code, body = running.http("/readyz")
        assert (code, body["state"], body["reason"]) == (200, "busy", "")
        wait_for(lambda: {p["name"]: p["state"] for p in running.http("/readyz")[1]["processes"]}["worker-0"] == "busy")


def test_a_stopped_worker_is_replaced_and_its_streams_go_on(running):
    case, victim = GOLDEN[0], running.child("gpu_worker")
    with (
        running.watch() as statuses,
        Client(running.address) as client,
        client.stream(case["prompt_ids"], GREEDY) as stream,
    ):
        assert next(statuses) == SERVING
        next(stream)
        victim.send_signal(signal.SIGSTOP)
        assert wait_for(lambda: running.health() == NOT_SERVING) < 2.5
        code, body = running.http("/readyz")
        assert (code, body["state"]) in ((503, "hung"), (503, "dead"), (503, "starting"))
        assert "worker-0" in body["reason"]
        assert list(stream.collect().token_ids) == case["output_ids"]
        assert [next(statuses), next(statuses)] == [NOT_SERVING, SERVING]
    assert not victim.is_running()


def test_a_stopped_scheduler_is_replaced(running):
    victim = running.child("scheduler_service.core")
    with Client(running.address) as client:
        restarts = {p.name: p.num_restarts for p in client.server_info().processes}
        victim.send_signal(signal.SIGSTOP)
        assert wait_for(lambda: running.health() == NOT_SERVING) < 2.5
        wait_for(lambda: not victim.is_running())
        running.wait_until_serving()
        wait_for(
            lambda: (
                {p.name: p.num_restarts for p in client.server_info().processes}
                == restarts | {"scheduler": restarts["scheduler"] + 1}
            )
        )
        case = GOLDEN[0]
        assert list(client.generate(case["prompt_ids"], GREEDY).token_ids) == case["output_ids"]


def test_a_stopped_gateway_is_replaced(running):
    victim = running.child("scheduler_service.gateway")
    victim.send_signal(signal.SIGSTOP)
    assert wait_for(lambda: not victim.is_running()) < 2.5
    running.wait_until_serving()
    with Client(running.address) as client:
        case = GOLDEN[0]
        assert list(client.generate(case["prompt_ids"], GREEDY).token_ids) == case["output_ids"]


def test_status_shows_every_process(running):
    command = [sys.executable, "-m", "pagewire_client", "status", "--address", running.address]
    wait_for(lambda: "starting" not in running.http("/readyz")[1]["processes"][1]["state"])
    with Client(running.address) as client:
        client.generate("x", SamplingParams(max_tokens=4, ignore_eos=True))
        wait_for(lambda: client.server_info().processes[1].num_steps >= 4)
    data = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True, text=True).stdout)
    by_name = {process["name"]: process for process in data["processes"]}
    assert set(by_name) == {"scheduler", "worker-0", "gateway-0"}
    assert by_name["worker-0"]["pid"] == running.child("gpu_worker").pid
    assert by_name["worker-0"]["last_step_age_s"] < LIMIT_S
    assert by_name["gateway-0"]["incarnation"] == data["gateway_incarnation"]
    assert by_name["scheduler"]["incarnation"] == data["scheduler_incarnation"]
    table = subprocess.run(
        command, capture_output=True, check=True, text=True, env={**os.environ, "COLUMNS": "160"}
    ).stdout
    assert "worker-0" in table
    assert "KV blocks in use" in table


def test_a_step_that_takes_longer_than_the_heartbeat_limit_is_no_hang(demo_model):
    """A prefill of 700 tokens in one step, on one thread."""
    running = Running(demo_model, "--heartbeat-timeout", "1")
    try:
        worker = running.child("gpu_worker")
        with Client(running.address) as client:
            started_s = time.monotonic()
            client.generate([7] * 700, SamplingParams(max_tokens=1))
            assert time.monotonic() - started_s > 1.0, "the step was too short to show anything"
            assert [p.num_restarts for p in client.server_info().processes] == [0, 0, 0]
        assert worker.is_running()
    finally:
        running.service.close()


def in_thread(client: Client, outcome: list[Completion | Exception], stream) -> threading.Thread:
    def collect() -> None:
        try:
            outcome.append(stream.collect())
        except UnavailableError as error:
            outcome.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    return thread


def test_sigterm_lets_open_streams_end_and_takes_no_new_ones(demo_model):
    running = Running(demo_model, "--drain-timeout", "120")
    outcome: list[Completion | Exception] = []
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], LONG) as stream:
        next(stream)
        thread = in_thread(client, outcome, stream)
        running.supervisor.send_signal(signal.SIGTERM)
        wait_for(lambda: running.http("/readyz")[0] == 503)
        assert running.http("/readyz")[1]["state"] == "draining"
        assert running.http("/healthz")[0] == 200
        assert running.health() == NOT_SERVING
        assert client.server_info().service_state is ProcessState.DRAINING
        with Client(running.address, timeout_s=5, retry=NO_RETRY) as other, pytest.raises(UnavailableError) as caught:
            other.generate("x", GREEDY)
        assert "shutting down" in str(caught.value)
        thread.join()
    (completion,) = outcome
    assert isinstance(completion, Completion)
    assert len(completion.token_ids) == 300
    assert running.service.wait() == 0


def test_no_process_outlives_a_killed_supervisor_not_even_a_stopped_one(demo_model):
    running = Running(demo_model)
    processes = running.supervisor.children(recursive=True)
    running.child("gpu_worker").send_signal(signal.SIGSTOP)
    running.supervisor.kill()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
    running.service.close()


def test_a_worker_that_keeps_dying_leaves_a_service_that_says_why(demo_model, tmp_path):
    model = tmp_path / "model.gguf"
    shutil.copy(demo_model, model)
    running = Running(model, "--max-restarts", "1")
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], LONG) as stream:
        next(stream)
        model.write_bytes(b"GGUF")
        running.child("gpu_worker").kill()
        with pytest.raises(UnavailableError, match=r"worker-0 failed 2 times in a row.*model\.gguf"):
            stream.collect()
        with pytest.raises(UnavailableError, match=r"worker-0 failed 2 times in a row.*model\.gguf"):
            client.generate("x", GREEDY)
        assert running.health() == NOT_SERVING
        assert running.http("/healthz")[0] == 503
        code, body = running.http("/readyz")
        assert (code, body["state"]) == (503, "dead")
        assert "model.gguf" in body["reason"]
        assert len(running.supervisor.children()) == 2
    running.supervisor.send_signal(signal.SIGTERM)
    assert running.service.wait() == 1
