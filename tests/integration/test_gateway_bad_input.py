"""Does bad input get a clear status over the wire, and does the gateway go on?"""

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagewire.ipc.requests import Submit
from pagewire.v1 import generate_pb2, inference_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, error_reason, status_detail
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

SERVICE = "/pagewire.v1.InferenceService"
MAX_MESSAGE_BYTES = 50_000


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeScheduler]:
    with FakeScheduler(f"ipc://{tmp_path_factory.mktemp('s')}/requests.sock", vocab_size=300) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    flags = ("--max-message-bytes", str(MAX_MESSAGE_BYTES), "--channelz")
    with GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log", *flags) as process:
        process.wait_until_serving()
        yield process


@pytest.fixture(autouse=True)
def _gateway_goes_on(gateway: GatewayProcess, scheduler: FakeScheduler) -> Iterator[None]:
    """After each test the scheduler has heard nothing of it, and a good request is served."""
    yield
    assert scheduler.take_all() == []
    call = gateway.stub().Generate(generate_pb2.GenerateRequest(text="hello"), timeout=TIMEOUT_S)
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
    assert "".join(event.delta.text for event in call) == "ok"


def fail(call: Any) -> grpc.RpcError:
    """The error that a call ends with before its first event."""
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return caught.value


def generate(gateway: GatewayProcess, **fields: Any) -> Any:
    return gateway.stub().Generate(generate_pb2.GenerateRequest(**fields), timeout=TIMEOUT_S)


def generate_bytes(gateway: GatewayProcess, data: bytes) -> Any:
    method: Any = gateway.channel().unary_stream(f"{SERVICE}/Generate")
    return method(data, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"text": ""}, "text"),
        ({"token_ids": {"ids": [1] * 600}}, "prompt"),
        ({"token_ids": {"ids": [300]}}, "token_ids.ids[0]"),
        ({"text": "x", "sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"text": "x", "sampling": {"temperature": -1}}, "sampling.temperature"),
    ],
)
def test_invalid_field_is_named(gateway: GatewayProcess, fields: dict[str, Any], field: str) -> None:
    error = fail(generate(gateway, **fields))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = status_detail(error, error_details_pb2.BadRequest).field_violations
    assert violation.field == field
    assert error.details() == f"{field}: {violation.description}"


def test_prompt_over_the_limit_names_limit_and_length(gateway: GatewayProcess) -> None:
    assert "600 tokens" in str(fail(generate(gateway, token_ids={"ids": [1] * 600})).details())
    assert "allows 512" in str(fail(generate(gateway, token_ids={"ids": [1] * 600})).details())


def test_field_that_is_not_served_is_named(gateway: GatewayProcess) -> None:
    error = fail(generate(gateway, text="x", adapter="a"))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert status_detail(error, error_details_pb2.ErrorInfo).metadata["field"] == "adapter"


def test_callers_template_is_refused(gateway: GatewayProcess) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "template": "{{ 1 }}"}
    error = fail(generate(gateway, chat=chat))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "--trust-request-chat-template" in str(error.details())


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "Detokenize"])
def test_unknown_model_is_not_found(gateway: GatewayProcess, method: str) -> None:
    requests = {
        "Generate": generate_pb2.GenerateRequest(model="gpt-9", text="x"),
        "Tokenize": inference_pb2.TokenizeRequest(model="gpt-9", text="x"),
        "Detokenize": inference_pb2.DetokenizeRequest(model="gpt-9"),
    }
    call = getattr(gateway.stub(), method)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(requests[method], timeout=TIMEOUT_S))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'gpt-9'" in str(caught.value.details())
    assert error_reason(caught.value) == "UNKNOWN_MODEL"


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x02\xff\xfe",  # text: two bytes that are no UTF-8
        b"\x0a\x01\xc3",  # model: half a character
        b"\x12\xff",  # a length without its bytes
        b"\xff\xff\xff\xff",
        b"hello",
    ],
)
def test_undecodable_request_is_the_callers_error(gateway: GatewayProcess, data: bytes) -> None:
    error = fail(generate_bytes(gateway, data))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "GenerateRequest" in str(error.details())
    assert error_reason(error) == "INVALID_FIELD"


def test_undecodable_unary_request_is_the_callers_error(gateway: GatewayProcess) -> None:
    method: Any = gateway.channel().unary_unary(f"{SERVICE}/Tokenize")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"\x12\x01\xff", timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServer",
    ],
)
def test_undecodable_request_to_a_standard_service_is_the_callers_error(gateway: GatewayProcess, method: str) -> None:
    call: Any = gateway.channel().stream_stream(method)
    error = fail(call(iter([b"\x0a\xff"]), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error_reason(error) == "INVALID_FIELD"
    assert "Traceback" not in gateway.log_text()


def test_health_of_an_unknown_service(gateway: GatewayProcess) -> None:
    stub, request = health_pb2_grpc.HealthStub(gateway.channel()), health_pb2.HealthCheckRequest(service="a.B")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(request, timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert error_reason(caught.value) == "UNKNOWN_SERVICE"
    watch = stub.Watch(request, timeout=TIMEOUT_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_health_is_listed(gateway: GatewayProcess) -> None:
    listed = health_pb2_grpc.HealthStub(gateway.channel()).List(health_pb2.HealthListRequest(), timeout=TIMEOUT_S)
    statuses = {name: response.status for name, response in listed.statuses.items()}
    assert {"", "pagewire.v1.InferenceService", "inference.GRPCInferenceService"} <= statuses.keys()
    assert set(statuses.values()) == {health_pb2.HealthCheckResponse.SERVING}


def test_oversize_request_is_refused(gateway: GatewayProcess) -> None:
    error = fail(generate(gateway, text="x" * MAX_MESSAGE_BYTES))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in str(error.details())


def test_unknown_method_is_unimplemented(gateway: GatewayProcess) -> None:
    method: Any = gateway.channel().unary_unary(f"{SERVICE}/Explode")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"", timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_http2_close_their_connection_alone(gateway: GatewayProcess) -> None:
    host, _, port = gateway.address.rpartition(":")
    # Whoever closes before it has read all resets the connection.
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection, suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(5_000))
        while connection.recv(4096):
            pass


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (inference_pb2.TokenizeRequest(), "prompt"),
        (inference_pb2.TokenizeRequest(chat=generate_pb2.Chat()), "chat.messages"),
    ],
)
def test_tokenize_checks_its_prompt(
    gateway: GatewayProcess, request_: inference_pb2.TokenizeRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        gateway.stub().Tokenize(request_, timeout=TIMEOUT_S)
    (violation,) = status_detail(caught.value, error_details_pb2.BadRequest).field_violations
    assert violation.field == field


def test_detokenize_names_the_token_that_does_not_exist(gateway: GatewayProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        gateway.stub().Detokenize(inference_pb2.DetokenizeRequest(token_ids=[1, 300]), timeout=TIMEOUT_S)
    (violation,) = status_detail(caught.value, error_details_pb2.BadRequest).field_violations
    assert violation.field == "token_ids[1]"
