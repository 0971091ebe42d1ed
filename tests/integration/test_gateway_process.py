"""Does the gateway process start, show its health and its API, and end as an operator expects?"""

import resource
import signal
import socket
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pagewire.ipc.requests import Goodbye, Submit
from pagewire.v1 import generate_pb2, inference_pb2
from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, gateway_command
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

SERVICE = "pagewire.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scheduler_address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/requests.sock"


def run_to_failure(command: list[str]) -> str:
    """The one line that a gateway which cannot start leaves on stderr."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def test_health_follows_the_scheduler(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    with GatewayProcess(model, scheduler_address, tmp_path / "log") as gateway:
        stub = health_pb2_grpc.HealthStub(gateway.channel())
        for name in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == NOT_SERVING
        # Whoever restarts gateways asks for this, and one that waits for its engine is well.
        alive = stub.Watch(health_pb2.HealthCheckRequest(service="liveness"), timeout=TIMEOUT_S)
        assert any(response.status == SERVING for response in alive)
        alive.cancel()
        with FakeScheduler(scheduler_address):
            gateway.wait_until_serving()
            for name in ("", SERVICE):
                watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
                assert any(response.status == SERVING for response in watch)
                watch.cancel()
        gateway.wait_until(NOT_SERVING)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.Check(health_pb2.HealthCheckRequest(service="other"))


def test_reflection_describes_the_service(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    with GatewayProcess(model, scheduler_address, tmp_path / "log") as gateway:
        database = ProtoReflectionDescriptorDatabase(gateway.channel())
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol(SERVICE)
        assert [method.name for method in file.service[0].method] == [
            "Generate",
            "Tokenize",
            "Detokenize",
            "ListModels",
            "GetServerInfo",
        ]


def test_gateway_listens_on_every_address(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/g.sock")
    with GatewayProcess(model, scheduler_address, tmp_path / "log", *listen) as gateway:
        assert gateway.process.stdout is not None
        assert gateway.process.stdout.readline() == f"gateway listening address=unix:{tmp_path}/g.sock\n"
        for address in (gateway.address, f"unix:{tmp_path}/g.sock"):
            with grpc.insecure_channel(address) as channel:
                models = gateway.stub(channel).ListModels(inference_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
                assert models.models[0].name == "tiny"
        assert gateway.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gateway_ends_on_a_signal(model: Path, scheduler_address: str, tmp_path: Path, number: int) -> None:
    with GatewayProcess(model, scheduler_address, tmp_path / "log") as gateway:
        gateway.process.send_signal(number)
        assert gateway.process.wait(TIMEOUT_S) == 0


def test_a_gateway_may_open_as_many_files_as_the_machine_allows(
    model: Path, scheduler_address: str, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What is started now inherits the lower limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with GatewayProcess(model, scheduler_address, tmp_path / "log") as gateway:
            assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_streams_end_resumable_when_the_gateway_is_stopped(
    model: Path, scheduler_address: str, tmp_path: Path
) -> None:
    with (
        FakeScheduler(scheduler_address) as scheduler,
        GatewayProcess(model, scheduler_address, tmp_path / "log", "--drain-timeout", "0.2") as gateway,
    ):
        gateway.wait_until_serving()
        call = gateway.stub().Generate(generate_pb2.GenerateRequest(text="x"), timeout=TIMEOUT_S)
        stream_id = scheduler.take(Submit).stream_id
        scheduler.send_stream(stream_id, byte_level_ids(b"x"))
        assert next(call).HasField("accepted")
        assert next(call).delta.text == "x"
        gateway.process.terminate()
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE") as caught:
            next(call)
        assert "shutting down" in str(caught.value.details())
        assert scheduler.take(Goodbye) == Goodbye()
        assert gateway.process.wait(TIMEOUT_S) == 0


def test_port_in_use_is_told(model: Path, scheduler_address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = run_to_failure(gateway_command(model, scheduler_address, "--listen", address))
    assert f"cannot listen on {address}" in line


def test_port_of_another_gateway_is_not_shared(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    with GatewayProcess(model, scheduler_address, tmp_path / "log") as gateway:
        line = run_to_failure(gateway_command(model, scheduler_address, "--listen", gateway.address))
        assert f"cannot listen on {gateway.address}" in line


def test_unix_socket_of_another_gateway_is_not_taken_over(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/g.sock")
    with GatewayProcess(model, scheduler_address, tmp_path / "log", *listen):
        line = run_to_failure(gateway_command(model, scheduler_address, *listen))
        assert "another server uses it" in line


def test_unix_socket_of_a_dead_gateway_is_taken_over(model: Path, scheduler_address: str, tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/g.sock")
    with GatewayProcess(model, scheduler_address, tmp_path / "log", *listen) as first:
        first.process.kill()
        first.process.wait()
    with GatewayProcess(model, scheduler_address, tmp_path / "log2", *listen) as second:
        assert second.stop() == 0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--listen", "nonsense"], "neither HOST:PORT nor unix:/path"),
        (["--listen", "unix:/no/such/folder/g.sock"], "does not exist"),
        (["--listen", f"unix:/tmp/{'x' * 103}"], "longer than 107 bytes"),
        (["--listen", "127.0.0.1:0", "--scheduler-address", "carrier-pigeon"], "is no address of a scheduler"),
    ],
)
def test_address_that_is_none_is_told(model: Path, scheduler_address: str, flags: list[str], problem: str) -> None:
    assert problem in run_to_failure(gateway_command(model, scheduler_address, *flags))


@pytest.mark.parametrize("content", [None, b"", b"GGUF\x03\x00\x00\x00", b"not a model"])
def test_model_file_that_is_missing_or_damaged_is_told(
    scheduler_address: str, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    line = run_to_failure(gateway_command(path, scheduler_address, "--listen", "127.0.0.1:0"))
    assert line.startswith("gateway: ")
    assert str(path) in line


def test_flags_that_make_no_sense_are_told(model: Path, scheduler_address: str) -> None:
    result = subprocess.run(
        gateway_command(model, scheduler_address), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert result.returncode == 2
    assert "--listen: give at least one address" in result.stderr
