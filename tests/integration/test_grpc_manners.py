"""Does a gateway behave as a gRPC engineer expects, with real clients? docs/grpc.md names these tests."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest

from pagewire.ipc.requests import Abort, Submit
from pagewire.v1 import generate_pb2, inference_pb2, inference_pb2_grpc
from pagewire_client import NO_RETRY, Client, SamplingParams
from pagewire_client.channel import SERVICE_CONFIG
from tests.fakes import fake_gateway as fake
from tests.fakes.counting_proxy import CountingProxy
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.free_port import free_port
from tests.fakes.gateway_process import TIMEOUT_S, GatewayProcess, error_reason
from tests.fakes.name_server import NameServer
from tests.fakes.patience import PATIENCE_S, PATIENT, wait_until
from tests.fakes.pinging_client import PingingClient
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

INFO = inference_pb2.GetServerInfoRequest()
# Closer together than the 10 seconds that clients are promised, so that uneven ones are tolerated too.
PING_PERIOD_S = 6.0
NUM_PINGS = 4
NUM_CALLERS, NUM_OLD_CONNECTIONS = 3, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def patient_pings(
    gateway: GatewayProcess, scheduler: FakeScheduler, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[PingingClient]]:
    """Pings to a public and a private address, while the other tests run."""
    folder = tmp_path_factory.mktemp("p")
    private = f"unix:{folder}/private.sock"
    with GatewayProcess(model, scheduler.address, folder / "log", "--private-listen", private) as process:
        process.wait_until_serving()
        yield [PingingClient(address, PING_PERIOD_S, NUM_PINGS) for address in (gateway.address, private)]


@pytest.fixture(autouse=True)
def _pings_have_begun(patient_pings: list[PingingClient]) -> None:
    return None


@pytest.fixture
def own_scheduler(tmp_path: Path) -> Iterator[FakeScheduler]:
    """One for the gateways of a single test."""
    with FakeScheduler(f"ipc://{tmp_path}/s") as fake:
        yield fake


@pytest.fixture
def shared_ports(
    own_scheduler: FakeScheduler, model: Path, tmp_path: Path
) -> Iterator[tuple[str, str, list[GatewayProcess]]]:
    """Two gateways on one port for gRPC and one for HTTP: where, and which."""
    port = free_port(2)
    address, http = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    flags = ("--listen", address, "--http", http, "--share-port")
    with (
        GatewayProcess(model, own_scheduler.address, tmp_path / "log0", *flags) as first,
        GatewayProcess(model, own_scheduler.address, tmp_path / "log1", *flags) as second,
    ):
        yield address, http, [first, second]


def incarnation(channel: grpc.Channel) -> str:
    """Which gateway answers."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return str(stub.GetServerInfo(INFO, timeout=TIMEOUT_S, wait_for_ready=True).gateway_incarnation)


def test_an_unknown_method_is_unimplemented_with_details(gateway: GatewayProcess) -> None:
    for method in ("/pagewire.v1.InferenceService/Nothing", "/no.such.Service/Method"):
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED") as caught:
            gateway.channel().unary_unary(method)(b"", timeout=TIMEOUT_S)
        assert error_reason(caught.value) == "UNKNOWN_METHOD"
        assert f"{method} is not a method of this server" in str(caught.value.details())


def test_requests_and_responses_have_limits(own_scheduler: FakeScheduler, model: Path, tmp_path: Path) -> None:
    flags = ("--max-message-bytes", "2000", "--max-response-bytes", "1000")
    with GatewayProcess(model, own_scheduler.address, tmp_path / "log", *flags) as gateway:
        stub = gateway.stub()
        with pytest.raises(grpc.RpcError, match="Received message larger than max"):
            stub.Tokenize(inference_pb2.TokenizeRequest(text="x" * 2001), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError, match="Sent message larger than max"):
            stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=byte_level_ids(b"x" * 1001)), timeout=TIMEOUT_S)
        text = stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=byte_level_ids(b"x" * 900)), timeout=TIMEOUT_S)
        assert text.text == "x" * 900


def test_a_response_over_the_limit_ends_its_stream_alone(
    own_scheduler: FakeScheduler, model: Path, tmp_path: Path
) -> None:
    flags = ("--max-response-bytes", "300")
    with GatewayProcess(model, own_scheduler.address, tmp_path / "log", *flags) as gateway:
        gateway.wait_until_serving()
        stub = gateway.stub()
        calls = [stub.Generate(generate_pb2.GenerateRequest(text="x"), timeout=TIMEOUT_S) for _ in range(2)]
        large, small = own_scheduler.take(Submit).stream_id, own_scheduler.take(Submit).stream_id
        token_ids = byte_level_ids(b"x")
        own_scheduler.send_tokens([(large, token_ids[0])] * 400)
        assert own_scheduler.take(Abort).stream_ids == (large,)
        own_scheduler.send_tokens([(small, token_ids[0])], stop_at_length(small))
        ends = []
        for call in calls:
            try:
                ends.append(list(call)[-1].WhichOneof("event"))
            except grpc.RpcError as error:
                ends.append(error.code())
        assert sorted(map(str, ends)) == ["StatusCode.RESOURCE_EXHAUSTED", "finished"]
    assert "Traceback" not in gateway.log_text()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_responses_are_compressed_for_callers_that_take_it(
    own_scheduler: FakeScheduler, model: Path, tmp_path: Path, compression: str
) -> None:
    request = inference_pb2.DetokenizeRequest(token_ids=byte_level_ids(b"x" * 20_000))
    num_bytes = {}
    with GatewayProcess(model, own_scheduler.address, tmp_path / "log", "--compression", compression) as gateway:
        # As a bit set: identity alone, or gzip too.
        for accepted in (0b001, 0b101):
            options = [("grpc.compression_enabled_algorithms_bitset", accepted)]
            with CountingProxy(gateway.address) as proxy, grpc.insecure_channel(proxy.address, options) as channel:
                assert gateway.stub(channel).Detokenize(request, timeout=TIMEOUT_S).text == "x" * 20_000
                num_bytes[accepted] = proxy.num_received
    assert num_bytes[0b001] > 20_000
    assert (num_bytes[0b101] < 4_000) == (compression == "gzip")


def test_a_caller_that_compresses_its_requests_is_understood(gateway: GatewayProcess) -> None:
    request = inference_pb2.TokenizeRequest(text="x" * 5000)
    stub = gateway.stub()
    assert len(stub.Tokenize(request, compression=grpc.Compression.Gzip, timeout=TIMEOUT_S).token_ids) == 5000


def test_old_connections_take_no_new_calls_and_callers_do_not_notice(
    own_scheduler: FakeScheduler, model: Path, tmp_path: Path
) -> None:
    flags = ("--max-connection-age", "0.05", "--max-connection-age-grace", str(PATIENCE_S))
    with (
        GatewayProcess(model, own_scheduler.address, tmp_path / "log", *flags) as gateway,
        CountingProxy(gateway.address) as proxy,
        grpc.insecure_channel(proxy.address) as channel,
        Client(proxy.address, retry=NO_RETRY) as client,
    ):
        gateway.wait_until_serving()
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        open_call = stub.Generate(generate_pb2.GenerateRequest(token_ids={"ids": [1]}), timeout=TIMEOUT_S)
        stream_id = own_scheduler.take(Submit).stream_id

        def ask_on_many_connections(call: Callable[[], Any]) -> None:
            while proxy.num_connections < NUM_OLD_CONNECTIONS:
                call()

        # Some of so many calls meet the notice that their connection is to go.
        calls = [lambda: stub.GetServerInfo(INFO, timeout=TIMEOUT_S), client.server_info] * NUM_CALLERS
        with ThreadPoolExecutor(len(calls)) as threads:
            list(threads.map(ask_on_many_connections, calls))
        own_scheduler.send_tokens([(stream_id, 1)], stop_at_length(stream_id))
        assert list(open_call)[-1].HasField("finished")


def test_a_stream_that_outlives_the_grace_is_resumed(own_scheduler: FakeScheduler, model: Path, tmp_path: Path) -> None:
    flags = ("--max-connection-age", "0.3", "--max-connection-age-grace", "0.2")
    with GatewayProcess(model, own_scheduler.address, tmp_path / "log", *flags) as gateway:
        gateway.wait_until_serving()
        call = gateway.stub().Generate(generate_pb2.GenerateRequest(token_ids={"ids": [1]}), timeout=TIMEOUT_S)
        own_scheduler.take(Submit)
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            list(call)
        own_scheduler.take(Abort)
        with Client(gateway.address, retry=PATIENT) as client:
            stream = client.stream([1], SamplingParams(max_tokens=2))
            first = own_scheduler.take(Submit)
            own_scheduler.send_tokens([(first.stream_id, 5)])
            assert next(stream).token_ids == (5,)
            chunks = _read_in_background(stream)
            assert own_scheduler.take(Abort).stream_ids == (first.stream_id,)
            second = own_scheduler.take(Submit)
            assert (second.request_id, second.resumes) == (first.request_id, True)
            own_scheduler.send_tokens([(second.stream_id, 6)], stop_at_length(second.stream_id))
            assert chunks() == [(6,)]
            assert stream.completion is not None
            assert stream.completion.token_ids == (5, 6)


def test_gateways_share_a_port(shared_ports: tuple[str, str, list[GatewayProcess]]) -> None:
    address, http, gateways = shared_ports
    answered = set()

    def connect_again() -> bool:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answered.add(incarnation(channel))
        return len(answered) == 2

    wait_until(connect_again)
    gateways[0].process.kill()
    gateways[0].process.wait()
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert incarnation(channel) in answered
    with urlopen(f"http://{http}/healthz", timeout=TIMEOUT_S) as answer:
        assert answer.status == 200


def test_gateways_behind_one_name_take_calls_in_turn(own_scheduler: FakeScheduler, model: Path, tmp_path: Path) -> None:
    hosts, port = ("127.0.0.1", "127.0.0.2"), free_port()
    with (
        NameServer(*hosts) as names,
        GatewayProcess(model, own_scheduler.address, tmp_path / "0", "--listen", f"{hosts[0]}:{port}") as first,
        GatewayProcess(model, own_scheduler.address, tmp_path / "1", "--listen", f"{hosts[1]}:{port}") as second,
    ):
        each = [incarnation(gateway.channel()) for gateway in (first, second)]
        target = f"dns://{names.address}/pagewire.test:{port}"
        with Client(target) as client:
            wait_until(lambda: {client.server_info().gateway_incarnation for _ in range(4)} == set(each))
            answers = [client.server_info().gateway_incarnation for _ in range(20)]
            assert [answers.count(one) for one in each] == [10, 10]
            second.process.kill()
            second.process.wait()
            assert {client.server_info().gateway_incarnation for _ in range(8)} == {each[0]}


class TestServiceConfig:
    """What plain gRPC clients do with the published service config, which names these methods."""

    @staticmethod
    def channel(address: str) -> grpc.Channel:
        return grpc.insecure_channel(
            address, [("grpc.service_config", SERVICE_CONFIG), ("grpc.use_local_subchannel_pool", 1)]
        )

    def test_it_is_valid_and_names_our_service(self) -> None:
        (method,) = json.loads(SERVICE_CONFIG)["methodConfig"]
        assert method["name"] == [{"service": inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name}]

    def test_unavailable_is_tried_again_before_the_first_response(self) -> None:
        def busy_at_first(request: Any, context: grpc.ServicerContext, call: int) -> Iterator[Any]:
            if call < 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "later")
            yield from fake.answer(request, context, call)

        service = fake.FakeService(busy_at_first)
        with fake.FakeGateway(service) as gateway, self.channel(gateway.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            events = list(stub.Generate(generate_pb2.GenerateRequest(text="x"), timeout=PATIENCE_S))
        assert events[-1].HasField("finished")
        assert len(service.requests) == 3

    @pytest.mark.parametrize(
        ("code", "num_events"), [(grpc.StatusCode.UNAVAILABLE, 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, 0)]
    )
    def test_a_stream_that_has_begun_and_other_codes_are_not(self, code: grpc.StatusCode, num_events: int) -> None:
        def fail(request: Any, context: grpc.ServicerContext, call: int) -> Iterator[Any]:
            yield from [fake.accepted(request)] * num_events
            context.abort(code, "no")

        service = fake.FakeService(fail)
        with fake.FakeGateway(service) as gateway, self.channel(gateway.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match=code.name):
                list(stub.Generate(generate_pb2.GenerateRequest(text="x"), timeout=PATIENCE_S))
        assert len(service.requests) == 1


def test_a_client_that_pings_all_the_time_is_sent_away(gateway: GatewayProcess) -> None:
    assert PingingClient(gateway.address, 0.2, 20).wait(TIMEOUT_S) == "too_many_pings"


def test_a_client_that_pings_every_ten_seconds_without_calls_is_tolerated(patient_pings: list[PingingClient]) -> None:
    assert [pings.wait(PATIENCE_S) for pings in patient_pings] == ["", ""]


def _read_in_background(stream: Any) -> Any:
    """Start to read a stream; gives what waits for the token ids of its chunks."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: [chunk.token_ids for chunk in stream])

    def wait() -> list[tuple[int, ...]]:
        pool.shutdown(wait=False)
        return [ids for ids in future.result(PATIENCE_S) if ids]

    return wait
