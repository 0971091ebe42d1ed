"""Are hung processes found and replaced, and does a real service drain and fail as its operator expects?"""

import json
import os
import shutil
import signal
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
from pagewire_client.types import Process, ProcessState
from tests.fakes import service_processes
from tests.fakes.patience import PATIENCE_S

pytestmark = pytest.mark.model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
SMALL = ("--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning", "--heartbeat-timeout", "2")
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=5000, ignore_eos=True)
ANSWER_S = 30.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def wait_for(condition) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


class Running:
    """A service with its HTTP port, on a private socket."""

    def __init__(self, model: Path, *flags: str) -> None:
        self.service = LocalService(str(model), flags=[*SMALL, "--http", "127.0.0.1:0", *flags])
        self.service.wait_until_ready(PATIENCE_S)
        self.address = self.service.addresses[0]
        self.supervisor = psutil.Process(self.service._process.pid)

    def child(self, name: str) -> psutil.Process:
        return service_processes.child(self.service, name)

    def health(self, service: str = "") -> object:
        """What grpc.health.v1 says; the status code if nothing answers."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                return health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_S).status
            except grpc.RpcError as error:
                return error.code()

    @contextmanager
    def watch(self) -> Iterator[Iterator[object]]:
        """Every change of the health."""
        with grpc.insecure_channel(self.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            yield (response.status for response in watch)

    def http(self, path: str) -> tuple[int, dict]:
        """Status and body; 0 if nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port()}{path}", timeout=ANSWER_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, psutil.Error):
            return 0, {}

    def wait_until_serving(self) -> None:
        wait_for(lambda: self.health() == SERVING)

    def why_not_ready(self) -> dict:
        """What /readyz says, once it says no."""
        while (answer := self.http("/readyz"))[0] != 503:
            time.sleep(0.02)
        return answer[1]

    def processes(self, client: Client) -> dict[str, Process]:
        """What the gateway knows of each process, once the supervisor has told it."""
        wait_for(lambda: client.server_info().processes)
        return {process.name: process for process in client.server_info().processes}

    def _http_port(self) -> int:
        """The port that the gateway of now took; 0 if there is none."""
        gateways = service_processes.children(self.service, "scheduler_service.gateway")
        sockets = [socket for gateway in gateways for socket in gateway.net_connections("tcp4")]
        return next((socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN), 0)


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
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], ENDLESS) as stream:
        next(stream)
        code, body = running.http("/readyz")
        assert (code, body["state"], body["reason"]) == (200, "busy", "")
        wait_for(
            lambda: ("worker-0", "busy") in [(p["name"], p["state"]) for p in running.http("/readyz")[1]["processes"]]
        )


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
        body = running.why_not_ready()
        assert body["state"] in ("hung", "dead", "starting")
        assert "worker-0" in body["reason"]
        assert list(stream.collect().token_ids) == case["output_ids"]
        assert [next(statuses), next(statuses)] == [NOT_SERVING, SERVING]
    assert not victim.is_running()


def test_a_stopped_scheduler_is_replaced(running):
    victim = running.child("scheduler_service.core")
    with running.watch() as statuses, Client(running.address) as client:
        restarts = {name: process.num_restarts for name, process in running.processes(client).items()}
        expected = restarts | {"scheduler": restarts["scheduler"] + 1}
        assert next(statuses) == SERVING
        victim.send_signal(signal.SIGSTOP)
        assert [next(statuses), next(statuses)] == [NOT_SERVING, SERVING]
        assert not victim.is_running()
        wait_for(lambda: {p.name: p.num_restarts for p in client.server_info().processes} == expected)
        case = GOLDEN[0]
        assert list(client.generate(case["prompt_ids"], GREEDY).token_ids) == case["output_ids"]


def test_a_stopped_gateway_is_replaced(running):
    victim = running.child("scheduler_service.gateway")
    victim.send_signal(signal.SIGSTOP)
    wait_for(lambda: not victim.is_running())
    running.wait_until_serving()
    with Client(running.address) as client:
        case = GOLDEN[0]
        assert list(client.generate(case["prompt_ids"], GREEDY).token_ids) == case["output_ids"]


def test_status_shows_every_process(running):
    command = [sys.executable, "-m", "pagewire_client", "status", "--address", running.address]
    with Client(running.address) as client:
        wait_for(lambda: running.processes(client)["worker-0"].state is not ProcessState.STARTING)
        client.generate("x", SamplingParams(max_tokens=4, ignore_eos=True))
        wait_for(lambda: running.processes(client)["worker-0"].num_steps >= 4)
    data = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True, text=True).stdout)
    by_name = {process["name"]: process for process in data["processes"]}
    assert set(by_name) == {"scheduler", "worker-0", "gateway-0"}
    assert by_name["worker-0"]["pid"] == running.child("gpu_worker").pid
    assert by_name["worker-0"]["last_step_age_s"] >= 0
    assert by_name["gateway-0"]["incarnation"] == data["gateway_incarnation"]
    assert by_name["scheduler"]["incarnation"] == data["scheduler_incarnation"]
    table = subprocess.run(
        command, capture_output=True, check=True, text=True, env={**os.environ, "COLUMNS": "160"}
    ).stdout
    assert "worker-0" in table
    assert "KV blocks in use" in table


def test_a_step_that_takes_longer_than_the_heartbeat_limit_is_no_hang(demo_model):
    """A prefill in one step, on one thread, as long as this machine needs."""
    running = Running(demo_model, "--heartbeat-timeout", "1", "--max-num-batched-tokens", "8192")
    try:
        worker = running.child("gpu_worker")
        with Client(running.address) as client:
            took_s, num_tokens = 0.0, 350
            while took_s < 1.0:
                num_tokens *= 2
                started_s = time.monotonic()
                client.generate([num_tokens] * num_tokens, SamplingParams(max_tokens=1))
                took_s = time.monotonic() - started_s
            assert [process.num_restarts for process in running.processes(client).values()] == [0, 0, 0]
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
    running = Running(demo_model, "--drain-timeout", str(2 * PATIENCE_S), "--heartbeat-timeout", str(2 * PATIENCE_S))
    worker = running.child("gpu_worker")
    outcome: list[Completion | Exception] = []
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], LONG) as stream:
        next(stream)
        # The stream stays open for as long as the service is looked at.
        worker.send_signal(signal.SIGSTOP)
        thread = in_thread(client, outcome, stream)
        running.supervisor.send_signal(signal.SIGTERM)
        wait_for(lambda: running.http("/readyz")[0] == 503)
        assert running.http("/readyz")[1]["state"] == "draining"
        assert running.http("/healthz")[0] == 200
        assert running.health() == NOT_SERVING
        assert client.server_info().service_state is ProcessState.DRAINING
        with (
            Client(running.address, timeout_s=PATIENCE_S, retry=NO_RETRY) as other,
            pytest.raises(UnavailableError) as caught,
        ):
            other.generate("x", GREEDY)
        assert "shutting down" in str(caught.value)
        worker.send_signal(signal.SIGCONT)
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
    assert service_processes.left_of(processes) == []
    running.service.close()


def test_a_worker_that_keeps_dying_leaves_a_service_that_says_why(demo_model, tmp_path):
    model = tmp_path / "model.gguf"
    shutil.copy(demo_model, model)
    running = Running(model, "--max-restarts", "1")
    with Client(running.address) as client, client.stream(GOLDEN[0]["prompt_ids"], LONG) as stream:
        next(stream)
        # Whoever has the old file open keeps it.
        (tmp_path / "damaged").write_bytes(b"GGUF")
        (tmp_path / "damaged").replace(model)
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
