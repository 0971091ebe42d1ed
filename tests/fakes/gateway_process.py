"""Gateway processes for tests, with gRPC clients to talk to them."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from pagewire.v1 import generate_pb2, inference_pb2_grpc
from tests.fakes.patience import PATIENCE_S

TIMEOUT_S = PATIENCE_S
MODEL_NAME = "tiny"


def gateway_command(model: Path, scheduler_address: str, *flags: str) -> list[str]:
    """The command line of a gateway; give it a --listen flag."""
    command = [sys.executable, "-m", "scheduler_service.gateway", "--model", str(model), "--model-name", MODEL_NAME]
    return [*command, "--scheduler-address", scheduler_address, *flags]


class GatewayProcess:
    """A gateway on a free port of 127.0.0.1, started on entering the context and ended with SIGTERM on leaving it.

    With `credentials` channels to it use TLS.
    """

    def __init__(
        self,
        model: Path,
        scheduler_address: str,
        log: Path,
        *flags: str,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._credentials = credentials
        self._command = gateway_command(model, scheduler_address, "--listen", "127.0.0.1:0", *flags)
        self._log = log
        self._stderr: IO[bytes]
        self._channels: list[grpc.Channel] = []
        self.process: subprocess.Popen[str]
        self.address = ""

    def __enter__(self) -> "GatewayProcess":
        self._stderr = self._log.open("wb")
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._stderr, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("gateway listening address="), self.log_text()
        self.address = line.strip().partition("=")[2]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()
        self.stop()

    def http_port(self) -> int:
        """Where it serves HTTP, if started with --http; call it once."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("gateway http address=127.0.0.1:"), self.log_text()
        return int(line.rpartition(":")[2])

    def stop(self) -> int:
        """End it as an operator would. Returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        return code

    def log_text(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def channel(self, **options: int) -> grpc.Channel:
        """A connection of its own."""
        pairs = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", value) for name, value in options.items())]
        if self._credentials is None:
            channel = grpc.insecure_channel(self.address, pairs)
        else:
            channel = grpc.secure_channel(self.address, self._credentials, pairs)
        self._channels.append(channel)
        return channel

    def stub(self, channel: grpc.Channel | None = None) -> Any:
        """A client of pagewire.v1."""
        return inference_pb2_grpc.InferenceServiceStub(channel or self.channel())

    def wait_until(self, status: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> None:
        """Wait until the gateway's health is this."""
        stub = health_pb2_grpc.HealthStub(self.channel())
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="pagewire.v1.InferenceService"), timeout=TIMEOUT_S)
        for response in watch:
            if response.status == status:
                watch.cancel()
                return

    def wait_until_serving(self) -> None:
        """Wait until the gateway has found a scheduler that is ready."""
        self.wait_until(health_pb2.HealthCheckResponse.SERVING)


def generate_request(**fields: Any) -> generate_pb2.GenerateRequest:
    """A request; sub-messages may be given as dicts. Its prompt is one token unless another is given."""
    if not {"text", "chat", "token_ids"} & fields.keys():
        fields["token_ids"] = {"ids": [1]}
    return generate_pb2.GenerateRequest(**fields)


def status_detail(error: grpc.RpcError, kind: type[Message]) -> Any:
    """The detail of this type that an error's status carries."""
    status = rpc_status.from_call(error)
    assert isinstance(status, status_pb2.Status), f"{error} has no details"
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    raise AssertionError(f"{status} has no {kind.__name__}")


def error_reason(error: grpc.RpcError) -> str:
    """ErrorInfo.reason of an error."""
    return str(status_detail(error, error_details_pb2.ErrorInfo).reason)
