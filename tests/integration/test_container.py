"""What a container's first process does: starts ranks, tells probes, passes a stop on, and dies with any of them."""

import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S, wait_until

SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"


class Container:
    """The first process with so many ranks."""

    def __init__(self, folder, num_ranks, *flags):
        self.folder = folder
        self.port = free_port()
        ranks = ["--ranks", str(num_ranks)] if num_ranks else []
        command = [sys.executable, "-m", "scheduler_service.supervisor.container", *ranks, *flags]
        command += ["--health-listen", f"127.0.0.1:{self.port}", "--"]
        command += [sys.executable, "-m", "tests.fakes.beating_process", "--folder", str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def tell(self, what, rank):
        (self.folder / f"{what}-{rank}").touch()

    def started(self):
        return {path.name.removeprefix("started-") for path in self.folder.glob("started-*")}

    def health(self, service):
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S, wait_for_ready=True)
            except grpc.RpcError as error:
                return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status.status)

    def end(self):
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said


@pytest.fixture
def start(tmp_path):
    containers = []

    def run(num_ranks, *flags):
        containers.append(Container(tmp_path, num_ranks, *flags))
        return containers[-1]

    yield run
    for container in containers:
        container.process.kill()
        container.process.communicate(timeout=PATIENCE_S)


def test_it_is_ready_when_every_rank_is_and_live_before(start):
    container = start(2, "--host-index", "1")
    assert container.health("liveness") == SERVING
    assert container.health("") == NOT_SERVING
    container.tell("ready", 2)
    wait_until(lambda: container.started() == {"2", "3"})
    assert container.health("") == NOT_SERVING
    container.tell("ready", 3)
    wait_until(lambda: container.health("") == SERVING)
    container.process.send_signal(signal.SIGTERM)
    assert container.end()[0] == 0


def test_one_rank_that_ends_ends_all_and_says_why(start):
    container = start(3)
    wait_until(lambda: len(container.started()) == 3)
    container.tell("end", 1)
    status, said = container.end()
    assert status == 1
    assert said.splitlines()[-1] == "container: worker-1 ended with exit status 1: rank 1 was told to end"


def test_a_rank_that_makes_no_progress_ends_all(start):
    container = start(2, "--step-timeout", "3")
    for rank in (0, 1):
        container.tell("ready", rank)
    wait_until(lambda: container.health("") == SERVING)
    container.tell("hang", 0)
    status, said = container.end()
    assert status == 1
    assert "worker-0 ended with it hung, with no progress" in said.splitlines()[-1]


def test_a_process_that_is_no_rank_gets_no_rank(start):
    container = start(None, "--name", "scheduler")
    wait_until(lambda: container.started() == {"none"})
    container.process.send_signal(signal.SIGTERM)
    assert container.end()[0] == 0


def test_a_process_has_time_to_end_and_is_not_ready_meanwhile(start):
    container = start(1, "--grace-s", str(10 * PATIENCE_S))
    container.tell("ready", 0)
    wait_until(lambda: container.health("") == SERVING)
    container.tell("linger", 0)
    container.process.send_signal(signal.SIGTERM)
    wait_until(lambda: container.health("") == NOT_SERVING)
    assert container.health("liveness") == SERVING
    container.tell("end", 0)
    assert container.end()[0] == 0


def test_a_process_that_hangs_before_it_ends_is_killed(start):
    container = start(1, "--grace-s", str(10 * PATIENCE_S), "--step-timeout", "1")
    container.tell("ready", 0)
    container.tell("linger", 0)
    wait_until(lambda: container.health("") == SERVING)
    container.process.send_signal(signal.SIGTERM)
    container.tell("hang", 0)
    assert container.end()[0] == 0


def test_an_address_in_use_is_told(start):
    container = start(1)
    assert container.health("liveness") == SERVING
    command = [sys.executable, "-m", "scheduler_service.supervisor.container", "--health-listen"]
    done = subprocess.run(
        [*command, f"127.0.0.1:{container.port}", "--", "true"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{container.port}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("flags", [[], ["--ranks", "0", "--", "true"], ["--ranks", "1", "--host-index", "-1", "true"]])
def test_flags_that_make_no_sense_are_refused(flags):
    command = [sys.executable, "-m", "scheduler_service.supervisor.container", "--health-listen", "127.0.0.1:0"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "error:" in done.stderr
