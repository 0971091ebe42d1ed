"""Do both clients keep their promises against a real gRPC server: results, errors, retries, deadlines, cancellation?"""

import asyncio
import threading

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from pagewire_client import (
    NO_RETRY,
    AsyncClient,
    Client,
    DeadlineExceededError,
    FinishReason,
    InvalidArgumentError,
    Resume,
    RetryPolicy,
    SamplingParams,
    UnavailableError,
)
from pagewire_client.errors import FieldViolation, RequestError
from tests.fakes import fake_gateway as fake
from tests.fakes.counting_proxy import CountingProxy
from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S

FAST_RETRY = RetryPolicy(max_attempts=4, max_resume_attempts=3, initial_backoff_s=0.01, max_backoff_s=0.02)


class SyncCaller:
    """Drives `Client`."""

    def __init__(self, address, **options):
        self.client = Client(address, **options)

    def call(self, method, *args, **kwargs):
        return getattr(self.client, method)(*args, **kwargs)

    def chunks(self, *args, take=None, **kwargs):
        received = []
        with self.client.stream(*args, **kwargs) as stream:
            for chunk in stream:
                received.append(chunk)
                if len(received) == take:
                    break
        return received

    def close(self):
        self.client.close()


class AsyncCaller:
    """Drives `AsyncClient` from synchronous tests."""

    def __init__(self, address, **options):
        self.loop = asyncio.new_event_loop()
        self.client = self.loop.run_until_complete(self._open(address, options))

    def call(self, method, *args, **kwargs):
        return self.loop.run_until_complete(getattr(self.client, method)(*args, **kwargs))

    def chunks(self, *args, take=None, **kwargs):
        return self.loop.run_until_complete(self._chunks(args, take, kwargs))

    def close(self):
        self.loop.run_until_complete(self.client.close())
        self.loop.close()

    async def _open(self, address, options):
        return AsyncClient(address, **options)

    async def _chunks(self, args, take, kwargs):
        received = []
        async with self.client.stream(*args, **kwargs) as stream:
            async for chunk in stream:
                received.append(chunk)
                if len(received) == take:
                    break
        return received


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def connect(request):
    """Give a function that starts a fake gateway with a handler and connects to it."""
    opened = []

    def open_caller(handler=None, service=None, **options):
        gateway = fake.FakeGateway(service or fake.FakeService(handler))
        caller = request.param(gateway.address, **options)
        opened.extend([caller.close, gateway.stop])
        return caller, gateway.service

    yield open_caller
    for close in opened:
        close()


def test_generate_collects_the_whole_answer(connect):
    caller, service = connect()
    completion = caller.call("generate", [1, 2, 3], SamplingParams(max_tokens=4, seed=11), request_id="mine")
    assert completion.text == "t0 t1 t2 t3 "
    assert completion.token_ids == (0, 1, 2, 3)
    assert completion.finish_reason is FinishReason.LENGTH
    assert (completion.request_id, completion.seed, completion.model) == ("mine", 11, "fake")
    assert (completion.usage.num_prompt_tokens, completion.usage.num_output_tokens) == (3, 4)
    assert len(service.requests) == 1


def test_stream_gives_every_chunk_in_order(connect):
    caller, _ = connect()
    assert [chunk.text for chunk in caller.chunks("hello", SamplingParams(max_tokens=3))] == ["t0 ", "t1 ", "t2 "]


def test_small_calls(connect):
    caller, _ = connect(service=fake.FakeService(num_starting_answers=2))
    assert caller.call("tokenize", "ab").token_ids == (97, 98)
    assert caller.call("tokenize", [{"role": "user", "content": "x"}]).token_ids == tuple(b"user:x\n")
    assert caller.call("detokenize", [97, 98]) == "ab"
    assert caller.call("list_models")[0].name == "fake"
    assert caller.call("server_info").state.value == "starting"


def test_wait_until_ready_reports_progress(connect):
    caller, _ = connect(service=fake.FakeService(num_starting_answers=2))
    seen = []
    assert caller.call("wait_until_ready", PATIENCE_S, seen.append).limits.max_model_len == 2048
    assert [(p.stage, p.done, p.total) for p in seen] == [("loading weights", 1, 2), ("loading weights", 2, 2)]


def test_wait_until_ready_gives_up_and_says_what_it_waited_for(connect):
    caller, _ = connect(service=fake.FakeService(num_starting_answers=1_000_000))
    caller.call("server_info")
    with pytest.raises(UnavailableError, match="loading weights"):
        caller.call("wait_until_ready", 2.0)


def test_errors_carry_code_message_and_details(connect):
    def refuse(request, context, call):
        fake.abort_with_details(
            context,
            grpc.StatusCode.INVALID_ARGUMENT,
            "temperature must be 0 or more",
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field="sampling.temperature", description="is -1")
                ]
            ),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2)),
            error_details_pb2.ErrorInfo(reason="OUT_OF_RANGE", domain="pagewire", metadata={"limit": "0"}),
        )
        yield

    caller, service = connect(refuse)
    with pytest.raises(InvalidArgumentError) as caught:
        caller.call("generate", "x")
    error = caught.value
    assert (error.code, error.message) == (grpc.StatusCode.INVALID_ARGUMENT, "temperature must be 0 or more")
    assert error.details.violations == (FieldViolation("sampling.temperature", "is -1"),)
    assert (error.details.retry_delay_s, error.details.reason, error.details.metadata) == (
        2.0,
        "OUT_OF_RANGE",
        {"limit": "0"},
    )
    assert isinstance(error, ValueError)
    assert "sampling.temperature: is -1" in str(error)
    assert len(service.requests) == 1


def test_unavailable_before_the_first_token_is_tried_again(connect):
    def fail_twice(request, context, call):
        if call == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        yield fake.accepted(request, call)
        if call == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        yield from [fake.delta([5], "five"), fake.finished(1)]

    caller, service = connect(fail_twice, retry=FAST_RETRY)
    completion = caller.call("generate", "x")
    assert (completion.text, completion.request_id) == ("five", "fake-3")
    assert len(service.requests) == 3


def test_a_stream_that_breaks_is_resumed_after_the_tokens_it_has(connect):
    def break_twice(request, context, call):
        yield fake.accepted(request, call)
        assert request.resume.received_token_ids == list(range(5, 4 + call))
        if call > 1:
            assert (request.resume.request_id, request.resume.seed) == ("mine", 7)
        yield fake.delta([4 + call], f"t{call} ")
        if call < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        yield fake.finished(3)

    caller, service = connect(
        break_twice, retry=RetryPolicy(max_attempts=1, max_resume_attempts=2, initial_backoff_s=0.01)
    )
    completion = caller.call("generate", "x", request_id="mine")
    assert (completion.text, completion.token_ids) == ("t1 t2 t3 ", (5, 6, 7))
    assert (completion.request_id, completion.seed) == ("mine", 7)
    assert [request.text for request in service.requests] == ["x"] * 3


def test_a_resumed_stream_that_breaks_adds_to_what_its_caller_had(connect):
    def break_once(request, context, call):
        yield fake.accepted(request, call)
        assert request.resume.received_token_ids == ([1, 2] if call == 1 else [1, 2, 3])
        yield fake.delta([2 + call], "x")
        if call == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        yield fake.finished(4)

    caller, _ = connect(break_once, retry=FAST_RETRY)
    completion = caller.call("generate", "x", request_id="mine", resume=Resume("mine", 7, [1, 2]))
    assert completion.token_ids == (3, 4)


def test_a_stream_that_breaks_again_and_again_without_output_ends(connect):
    def break_always(request, context, call):
        yield fake.accepted(request, call)
        if call == 1:
            yield fake.delta([5], "five")
        context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    caller, service = connect(break_always, retry=FAST_RETRY)
    with pytest.raises(UnavailableError, match="lost"):
        caller.call("generate", "x")
    assert len(service.requests) == FAST_RETRY.max_resume_attempts


def test_a_stream_that_ends_otherwise_is_not_resumed(connect):
    def take_over(request, context, call):
        yield from [fake.accepted(request, call), fake.delta([5], "five")]
        context.abort(grpc.StatusCode.ABORTED, "another call resumed this request")

    caller, service = connect(take_over, retry=FAST_RETRY)
    with pytest.raises(RequestError, match="ABORTED"):
        caller.call("generate", "x")
    assert len(service.requests) == 1


def test_calls_go_to_all_gateways_in_turn_and_past_one_that_is_gone():
    with fake.FakeGateway(fake.FakeService()) as first, fake.FakeGateway(fake.FakeService()) as second:
        with Client(f"{first.address}, {second.address}", retry=FAST_RETRY) as client:
            for _ in range(4):
                client.generate("x")
            assert [len(gateway.service.requests) for gateway in (first, second)] == [2, 2]
            first.stop()
            for _ in range(3):
                assert client.generate("x").text == "t0 t1 t2 "
        assert len(second.service.requests) == 5


@pytest.mark.parametrize("first_turn", [0, 1])
def test_streams_that_break_together_are_all_resumed_elsewhere(monkeypatch, first_turn):
    monkeypatch.setattr("pagewire_client.gateways.random.randrange", lambda stop: first_turn)

    def break_off(request, context, call):
        yield fake.accepted(request, call)
        context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    once = RetryPolicy(max_attempts=1, max_resume_attempts=2, initial_backoff_s=0.01)
    with (
        fake.FakeGateway(fake.FakeService(break_off)) as broken,
        fake.FakeGateway(fake.FakeService()) as good,
        Client(f"{broken.address},{good.address}", retry=once) as client,
    ):
        streams = [client.stream("x") for _ in range(7)]
        assert [stream.collect().text for stream in streams] == ["t0 t1 t2 "] * 7
        assert len(broken.service.requests) == 4 - first_turn


@pytest.mark.parametrize("kind", [SyncCaller, AsyncCaller])
def test_calls_go_to_all_gateways_of_one_target_in_turn_and_are_resumed_at_another(kind):
    """A list of addresses is handled as the addresses that a name resolves to."""
    broken = threading.Event()

    def break_off(request, context, call):
        yield fake.accepted(request, call)
        position = len(request.resume.received_token_ids)
        yield fake.delta([position], f"t{position} ")
        if broken.is_set() and not position:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        yield fake.finished(2)

    services = [fake.FakeService(break_off) for _ in range(2)]
    with fake.FakeGateway(services[0]) as first, fake.FakeGateway(services[1]) as second:
        caller = kind(f"ipv4:{first.address},{second.address}", retry=FAST_RETRY)
        # Calls go to those that are connected.
        while not all(service.requests for service in services):
            caller.call("generate", "x")
        counts = [len(service.requests) for service in services]
        for _ in range(4):
            caller.call("generate", "x")
        assert [len(service.requests) for service in services] == [count + 2 for count in counts]
        broken.set()
        assert caller.call("generate", "x").text == "t0 t1 "
        assert [len(service.requests) for service in services] == [count + 3 for count in counts]
        broken.clear()
        first.stop()
        for _ in range(3):
            assert caller.call("generate", "x").text == "t0 "
        assert len(services[1].requests) == counts[1] + 6
        caller.close()


def test_retries_end(connect):
    def fail(request, context, call):
        context.abort(grpc.StatusCode.UNAVAILABLE, "never")
        yield

    caller, service = connect(fail, retry=FAST_RETRY)
    with pytest.raises(UnavailableError, match="never"):
        caller.call("generate", "x")
    assert len(service.requests) == FAST_RETRY.max_attempts


def test_timeout_ends_the_call(connect):
    def hang(request, context, call):
        yield fake.accepted(request, call)
        fake.wait_until_cancelled(context)

    caller, service = connect(hang)
    timeout_s = 0.1
    # A call that runs out of time before it reaches the service shows nothing.
    while not service.requests:
        timeout_s *= 2
        with pytest.raises(DeadlineExceededError) as caught:
            caller.call("generate", "x", timeout=timeout_s)
    assert isinstance(caught.value, TimeoutError)
    assert service.closed.acquire(timeout=PATIENCE_S)


def test_default_timeout_can_be_lifted_by_the_call(connect):
    caller, _ = connect(timeout_s=0.0)
    assert caller.call("generate", "x", timeout=None).text == "t0 t1 t2 "


def test_closing_a_stream_cancels_the_request(connect):
    def endless(request, context, call):
        yield fake.accepted(request, call)
        while context.is_active():
            yield fake.delta([1], "a")

    caller, service = connect(endless)
    assert len(caller.chunks("x", take=5)) == 5
    assert service.closed.acquire(timeout=PATIENCE_S)
    assert service.num_open == 0


def test_a_stream_without_its_last_event_is_an_error(connect):
    def stop_short(request, context, call):
        yield from [fake.accepted(request, call), fake.delta([1], "a")]

    caller, _ = connect(stop_short)
    with pytest.raises(RequestError, match="DATA_LOSS"):
        caller.call("generate", "x")


def test_a_client_finds_a_restarted_gateway(connect):
    address = f"127.0.0.1:{free_port()}"
    caller, _ = connect()
    client = type(caller)(address, retry=FAST_RETRY)
    with pytest.raises(UnavailableError):
        client.call("generate", "x")
    with fake.FakeGateway(fake.FakeService(), (address,)):
        assert client.call("wait_until_ready", PATIENCE_S)
        assert client.call("generate", "x").text == "t0 t1 t2 "
    client.close()


def test_a_connection_may_take_its_time(connect):
    caller, _ = connect()
    with fake.FakeGateway(fake.FakeService()) as gateway, CountingProxy(gateway.address, delay_s=1.0) as proxy:
        client = type(caller)(proxy.address, retry=NO_RETRY)
        assert client.call("generate", "x").text == "t0 t1 t2 "
        client.close()
