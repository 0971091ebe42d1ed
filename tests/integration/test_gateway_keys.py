"""Who may call what when a gateway asks for API keys, and what do their keys' limits do? With real gRPC clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pagewire.ipc.requests import Abort, Submit
from pagewire.v1 import inference_pb2
from pagewire_client import NO_RETRY, AuthenticationError, Client, ResourceExhaustedError, SamplingParams
from tests.fakes.api_keys import bearer, write_keys
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, error_reason, generate_request, status_detail
from tests.fakes.patience import PATIENT
from tests.fakes.tiny_model import write_tiny_model

MODELS = inference_pb2.ListModelsRequest()
LIMITS = {"bob": {"max_concurrent_requests": 1}, "cem": {"requests_per_minute": 1}, "dan": {"tokens_per_minute": 5}}
KEYS: dict[str, dict[str, Any]] = {
    "ana": {},
    "root": {"roles": ["admin", "generate"]},
    "none": {"roles": []},
    "low": {"max_priority": -1},
    **LIMITS,
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("k") / "keys.toml"
    write_keys(path, **KEYS)
    return path


@pytest.fixture(scope="module")
def gateway(scheduler: FakeScheduler, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    flags = ("--api-keys", str(keys), "--channelz", "--log-level", "debug")
    with GatewayProcess(write_tiny_model(folder / "model"), scheduler.address, folder / "log", *flags) as process:
        process.wait_until_serving()
        yield process
        assert process.stop() == 0


def generate(stub: Any, name: str, **fields: Any) -> Any:
    """An open call with the key of this name."""
    return stub.Generate(generate_request(**fields), metadata=bearer(name), timeout=TIMEOUT_S)


def end(scheduler: FakeScheduler, call: Any, num_tokens: int = 1) -> None:
    """Let a call have its tokens and end."""
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_tokens([(stream_id, 1)] * num_tokens, stop_at_length(stream_id))
    assert list(call)[-1].HasField("finished")


@pytest.mark.parametrize(
    "metadata", [(), bearer("nobody"), (("authorization", "key-of-ana"),), (*bearer("ana"), *bearer("ana"))]
)
@pytest.mark.parametrize("method", ["/pagewire.v1.InferenceService/ListModels", "/no.such.Service/Method"])
def test_a_call_without_a_valid_key_is_unauthenticated(gateway: GatewayProcess, method: str, metadata: Any) -> None:
    call = gateway.channel().unary_unary(method)
    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED") as caught:
        call(b"", metadata=metadata, timeout=TIMEOUT_S)
    assert error_reason(caught.value) == "API_KEY_INVALID"
    assert "key-of" not in str(caught.value)


def test_a_streaming_caller_without_a_key_is_refused_before_it_says_anything(gateway: GatewayProcess) -> None:
    requests: Iterator[bytes] = iter(lambda: gateway.process.wait(TIMEOUT_S) or b"", None)
    call = gateway.channel().stream_stream("/pagewire.v1.InferenceService/Generate")(requests, timeout=TIMEOUT_S)
    assert call.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_without_the_role_is_forbidden(gateway: GatewayProcess) -> None:
    with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED") as caught:
        gateway.stub().ListModels(MODELS, metadata=bearer("none"), timeout=TIMEOUT_S)
    assert error_reason(caught.value) == "NOT_ALLOWED"
    assert "'none' may not call /pagewire.v1.InferenceService/ListModels" in str(caught.value.details())


def test_health_is_open(gateway: GatewayProcess) -> None:
    stub = health_pb2_grpc.HealthStub(gateway.channel())
    assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_is_for_any_key(gateway: GatewayProcess) -> None:
    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        ProtoReflectionDescriptorDatabase(gateway.channel()).get_services()
    keyed = grpc.intercept_channel(gateway.channel(), _Keyed("none"))
    assert "pagewire.v1.InferenceService" in ProtoReflectionDescriptorDatabase(keyed).get_services()


def test_channelz_is_for_admins(gateway: GatewayProcess) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(gateway.channel())
    with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
        stub.GetServers(channelz_pb2.GetServersRequest(), metadata=bearer("ana"))
    servers = stub.GetServers(channelz_pb2.GetServersRequest(), metadata=bearer("root")).server
    assert any(server.data.calls_started for server in servers)


def test_the_scheduler_learns_whose_request_it_is(stub: Any, scheduler: FakeScheduler) -> None:
    calls = {name: generate(stub, name, cache_salt="s") for name in ("ana", "low")}
    submits = {submit.tenant: submit for submit in (scheduler.take(Submit), scheduler.take(Submit))}
    assert {name: submit.priority for name, submit in submits.items()} == {"ana": 0, "low": -1}
    assert {submit.cache_salt for submit in submits.values()} == {"ana\0s", "low\0s"}
    for name, call in calls.items():
        scheduler.send_tokens([(submits[name].stream_id, 1)], stop_at_length(submits[name].stream_id))
        assert list(call)[-1].HasField("finished")


def test_more_priority_than_the_key_allows_is_forbidden(stub: Any) -> None:
    with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED") as caught:
        next(generate(stub, "low", priority=3))
    assert "priority: is 3" in str(caught.value.details())


@pytest.mark.parametrize(("name", "quota"), [("cem", "requests_per_minute of 1"), ("dan", "tokens_per_minute of 5")])
def test_a_used_up_quota_is_told_with_the_time_to_wait(
    stub: Any, scheduler: FakeScheduler, name: str, quota: str
) -> None:
    end(scheduler, generate(stub, name, token_ids={"ids": [1] * 2}), num_tokens=9)
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED") as caught:
        next(generate(stub, name))
    violation = status_detail(caught.value, error_details_pb2.QuotaFailure).violations[0]
    assert violation.subject == f"key:{name}"
    assert quota in violation.description
    delay = status_detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds()
    assert 0 < delay <= 84
    assert error_reason(caught.value) == "QUOTA_EXCEEDED"


def test_requests_at_once_are_bounded_until_one_is_cancelled(stub: Any, scheduler: FakeScheduler) -> None:
    first = generate(stub, "bob")
    stream_id = scheduler.take(Submit).stream_id
    assert next(first).HasField("accepted")
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
        next(generate(stub, "bob"))
    end(scheduler, generate(stub, "ana"))
    first.cancel()
    assert scheduler.take(Abort).stream_ids == (stream_id,)
    end(scheduler, generate(stub, "bob"))


def test_keys_change_while_the_gateway_runs(gateway: GatewayProcess, keys: Path) -> None:
    with Client(gateway.address, api_key="key-of-eve", retry=NO_RETRY) as client:
        with pytest.raises(AuthenticationError):
            client.list_models()
        write_keys(keys, eve={})
        _wait_for(gateway, "keys reloaded")
        assert client.list_models()
        keys.write_text("[[keys]")
        _wait_for(gateway, "keys not reloaded")
        assert client.list_models()
        write_keys(keys, **KEYS)
        assert _wait_for(gateway, "keys reloaded", 2)
        with pytest.raises(AuthenticationError, match="revoked"):
            client.list_models()


def test_the_library_sends_its_key_and_comes_back_when_told(
    gateway: GatewayProcess, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEWIRE_API_KEY", "key-of-bob")
    params = SamplingParams(max_tokens=1)
    with Client(gateway.address, retry=PATIENT) as client, Client(gateway.address, retry=NO_RETRY) as hasty:
        first = client.stream([1], params)
        stream_id = scheduler.take(Submit).stream_id
        assert first._call is not None
        with pytest.raises(ResourceExhaustedError) as caught:
            hasty.generate([1], params)
        assert caught.value.details.retry_delay_s == 1.0
        scheduler.send_tokens([(stream_id, 1)], stop_at_length(stream_id))
        first.collect()
        second = client.stream([1], params)
        stream_id = scheduler.take(Submit).stream_id
        scheduler.send_tokens([(stream_id, 1)], stop_at_length(stream_id))
        assert second.collect().token_ids == (1,)


def test_no_key_is_in_the_log(gateway: GatewayProcess) -> None:
    log = gateway.log_text()
    assert "tenant=ana" in log
    assert "key-of" not in log
    assert "sha256" not in log


def test_a_key_file_that_cannot_be_used_is_told(scheduler: FakeScheduler, tmp_path: Path) -> None:
    from tests.integration.test_gateway_process import gateway_command, run_to_failure

    (tmp_path / "keys.toml").write_text("nonsense")
    model = write_tiny_model(tmp_path / "model")
    flags = ("--listen", "127.0.0.1:0", "--api-keys", str(tmp_path / "keys.toml"))
    line = run_to_failure(gateway_command(model, scheduler.address, *flags))
    assert line.startswith("gateway: the key file")


class _Keyed(grpc.StreamStreamClientInterceptor):
    """Adds a key to the calls of a stub that takes no metadata."""

    def __init__(self, name: str) -> None:
        self._metadata = bearer(name)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(client_call_details._replace(metadata=self._metadata), request_iterator)


def _wait_for(gateway: GatewayProcess, text: str, count: int = 1) -> bool:
    """Wait until the gateway has logged it so often."""
    from tests.fakes.patience import wait_until

    return wait_until(lambda: gateway.log_text().count(text) >= count)
