"""What do clients see when the scheduler is absent, starting, replaced, lost, or talks rubbish?"""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from msgspec import structs

from pagewire.ipc.codec import ANY, MAGIC, Codec, new_incarnation
from pagewire.ipc.requests import (
    Abort,
    Ended,
    EndReason,
    EngineState,
    EngineStatus,
    GatewayMessage,
    Load,
    Rejected,
    RejectReason,
    Started,
    StepTokens,
    Submit,
)
from pagewire.v1 import inference_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import (
    MODEL_NAME,
    TIMEOUT_S,
    GatewayProcess,
    error_reason,
    generate_request,
    status_detail,
)
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/requests.sock"


@pytest.fixture(scope="module")
def gateway(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("g")
    with GatewayProcess(write_tiny_model(folder / "model"), address, folder / "log") as process:
        yield process
        assert process.stop() == 0


def start(gateway: GatewayProcess) -> Any:
    request = generate_request(token_ids={"ids": [1, 2]})
    return gateway.stub().Generate(request, timeout=TIMEOUT_S)


def wait_until_serving(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    """Wait until the gateway serves with this scheduler, and no longer with the one before it."""
    while server_info(gateway).scheduler_incarnation != scheduler.incarnation.hex():
        pass
    gateway.wait_until_serving()


def check_unavailable(call: Any, problem: str) -> None:
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE") as caught:
        list(call)
    assert problem in str(caught.value.details())
    assert error_reason(caught.value) == "ENGINE_UNAVAILABLE"
    assert status_detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


def check_serves(gateway: GatewayProcess, scheduler: FakeScheduler) -> None:
    call = start(gateway)
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
    assert "".join(event.delta.text for event in call) == "ok"


def server_info(gateway: GatewayProcess) -> inference_pb2.GetServerInfoResponse:
    info = gateway.stub().GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=TIMEOUT_S)
    assert isinstance(info, inference_pb2.GetServerInfoResponse)
    return info


def test_gateway_without_scheduler_answers_what_needs_none(gateway: GatewayProcess) -> None:
    gateway.wait_until(NOT_SERVING)
    check_unavailable(start(gateway), "waiting for the scheduler")
    info = server_info(gateway)
    assert info.engine_state == inference_pb2.ENGINE_STATE_STARTING
    assert info.scheduler_incarnation == ""
    stub = gateway.stub()
    assert list(stub.Tokenize(inference_pb2.TokenizeRequest(text="hello")).token_ids) == [259]
    assert stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[259])).text == "hello"
    (model,) = stub.ListModels(inference_pb2.ListModelsRequest()).models
    assert (model.name, model.architecture, model.max_model_len) == (MODEL_NAME, "tiny", 512)
    assert (model.vocab_size, model.has_chat_template) == (268, True)


def test_gateway_tells_how_far_the_start_is(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address, state=EngineState.STARTING) as scheduler:
        while server_info(gateway).scheduler_incarnation != scheduler.incarnation.hex():
            pass
        scheduler.set_state(EngineState.STARTING, stage="loading weights", done=3, total=10)
        while not (info := server_info(gateway)).progress.stage:
            pass
        assert (info.progress.stage, info.progress.done, info.progress.total) == ("loading weights", 3, 10)
        assert info.engine_state == inference_pb2.ENGINE_STATE_STARTING
        check_unavailable(start(gateway), "loading weights (3 of 10)")
        scheduler.set_state(EngineState.READY)
        wait_until_serving(gateway, scheduler)
        info = server_info(gateway)
        assert info.engine_state == inference_pb2.ENGINE_STATE_READY
        assert (info.limits.max_model_len, info.limits.block_size, info.limits.num_blocks) == (512, 16, 4096)
        assert (info.load.num_running, info.load.num_waiting, info.load.num_free_blocks) == (1, 2, 3)
        check_serves(gateway, scheduler)
        scheduler.set_state(EngineState.UNAVAILABLE, detail="worker rank 0 died")
        gateway.wait_until(NOT_SERVING)
        check_unavailable(start(gateway), "worker rank 0 died")
    gateway.wait_until(NOT_SERVING)


def test_draining_engine_gets_no_new_requests_and_ends_its_own(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = start(gateway)
        stream_id = scheduler.take(Submit).stream_id
        scheduler.set_state(EngineState.DRAINING, detail="drains: it takes no new requests")
        gateway.wait_until(NOT_SERVING)
        assert server_info(gateway).engine_state == inference_pb2.ENGINE_STATE_DRAINING
        check_unavailable(start(gateway), "takes no new requests")
        scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
        assert "".join(event.delta.text for event in call) == "ok"


def test_streams_outlive_a_worker(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = start(gateway)
        stream_id = scheduler.take(Submit).stream_id
        scheduler.set_state(EngineState.UNAVAILABLE, detail="worker rank 0 died")
        gateway.wait_until(NOT_SERVING)
        scheduler.set_state(EngineState.READY)
        scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
        assert "".join(event.delta.text for event in call) == "ok"


def test_streams_go_on_with_another_scheduler(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        running = start(gateway)
        first = scheduler.take(Submit)
        queued = start(gateway)
        second = scheduler.take(Submit)
        scheduler.send_stream(first.stream_id, byte_level_ids(b"xy"))
        assert next(running).HasField("accepted")
        text = ""
        while text != "xy":
            text += next(running).delta.text
    gateway.wait_until(NOT_SERVING)
    check_unavailable(start(gateway), "no scheduler answers")
    assert server_info(gateway).scheduler_incarnation == ""
    with FakeScheduler(address, state=EngineState.STARTING) as scheduler:
        while server_info(gateway).scheduler_incarnation != scheduler.incarnation.hex():
            pass
        assert scheduler.take_all() == []
        scheduler.set_state(EngineState.READY)
        again = scheduler.take(Submit), scheduler.take(Submit)
        for submit, old, received in zip(again, (first, second), (b"xy", b""), strict=True):
            assert np.frombuffer(submit.token_ids, np.int32).tolist() == [1, 2, *byte_level_ids(received)]
            assert submit.was_accepted
            changed = {"stream_id": old.stream_id, "token_ids": old.token_ids, "was_accepted": False}
            assert structs.replace(submit, **changed) == old
        scheduler.send_tokens([(first.stream_id, 1)], stop_at_length(second.stream_id))
        for submit in again:
            scheduler.send_stream(submit.stream_id, byte_level_ids(b"z"), stop_at_length(submit.stream_id))
        assert "".join(event.delta.text for event in running) == "z"
        *_, last = queued
        assert last.finished.usage.num_output_tokens == 1
        check_serves(gateway, scheduler)
        assert scheduler.take_all() == []


def test_streams_go_on_with_a_scheduler_that_is_another(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = start(gateway)
        old = scheduler.take(Submit).stream_id
        scheduler.send(StepTokens(b"", b"", [], [Started(old, 2)]))
        late = scheduler.incarnation
        scheduler.become_another()
        stream_id = scheduler.take(Submit).stream_id
        good = StepTokens(stream_id.to_bytes(4, "little"), b"\x01\x00\x00\x00", [stop_at_length(stream_id)])
        scheduler.send(good, sender=late)
        scheduler.send(StepTokens(b"", b"", [], [Started(stream_id, 1)]))
        scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
        events = list(call)
        assert "".join(event.delta.text for event in events) == "ok"
        # Prefix hits are those of the first run.
        assert events[-1].finished.usage.num_cached_tokens == 2
        assert server_info(gateway).scheduler_incarnation == scheduler.incarnation.hex()
        check_serves(gateway, scheduler)
        assert scheduler.take_all() == []


def test_streams_go_on_with_a_scheduler_that_has_forgotten_them(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = start(gateway)
        old = scheduler.take(Submit).stream_id
        scheduler.send_stream(old, byte_level_ids(b"o"))
        scheduler.set_state(EngineState.READY)
        scheduler.forget()
        # Should it run the stream after all, it is to stop.
        assert scheduler.take(Abort).stream_ids == (old,)
        submit = scheduler.take(Submit)
        assert np.frombuffer(submit.token_ids, np.int32).tolist() == [1, 2, *byte_level_ids(b"o")]
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"k"), stop_at_length(submit.stream_id))
        assert "".join(event.delta.text for event in call) == "ok"
        check_serves(gateway, scheduler)
        assert scheduler.take_all() == []


def resume(gateway: GatewayProcess) -> Any:
    request = generate_request(
        token_ids={"ids": [1, 2]},
        stopping={"stop": ["cde"]},
        resume={"request_id": "mine", "seed": 5, "received_token_ids": byte_level_ids(b"abc")},
    )
    return gateway.stub().Generate(request, timeout=TIMEOUT_S)


def test_resumes_say_so_and_are_told_why_they_are_refused(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = resume(gateway)
        submit = scheduler.take(Submit)
        assert (submit.resumes, submit.request_id, submit.sampling.seed) == (True, "mine", 5)
        scheduler.send(Rejected(submit.stream_id, RejectReason.INVALID, "resumes", "the seed is not that"))
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT") as caught:
            list(call)
        assert caught.value.details() == "resume: the seed is not that"


def test_a_stream_that_is_resumed_elsewhere_is_aborted(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = resume(gateway)
        stream_id = scheduler.take(Submit).stream_id
        scheduler.send_tokens([], Ended(stream_id, EndReason.REPLACED, None, 0, ""))
        with pytest.raises(grpc.RpcError, match="ABORTED") as caught:
            list(call)
        assert error_reason(caught.value) == "STREAM_REPLACED"


def test_a_resume_waits_for_an_engine_that_starts_again(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address, state=EngineState.STARTING) as scheduler:
        while server_info(gateway).scheduler_incarnation != scheduler.incarnation.hex():
            pass
        call = resume(gateway)
        check_unavailable(start(gateway), "is starting")
        assert scheduler.take_all() == []
        scheduler.set_state(EngineState.READY)
        submit = scheduler.take(Submit)
        assert (submit.resumes, submit.request_id) == (True, "mine")
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"dx"), stop_at_length(submit.stream_id))
        assert "".join(event.delta.text for event in call) == "cdx"


@pytest.mark.parametrize(("more", "text"), [(b"de", ""), (b"dx", "cdx")])
def test_a_stop_text_may_span_the_scheduler_and_the_gateway_that_died(
    gateway: GatewayProcess, address: str, more: bytes, text: str
) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = resume(gateway)
        scheduler.send_stream(scheduler.take(Submit).stream_id, byte_level_ids(more[:1]))
        assert next(call).HasField("accepted")
        assert list(next(call).delta.token_ids) == byte_level_ids(b"d")
        scheduler.become_another()
        submit = scheduler.take(Submit)
        assert not submit.resumes
        stream_id = submit.stream_id
        assert np.frombuffer(submit.token_ids, np.int32).tolist() == [1, 2, *byte_level_ids(b"abcd")]
        scheduler.send_stream(stream_id, byte_level_ids(more[1:]), stop_at_length(stream_id))
        events = list(call)
        assert "".join(event.delta.text for event in events) == text
        assert events[-1].finished.stop == ("" if text else "cde")


def test_streams_without_a_scheduler_wait_no_longer_than_they_may(address: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with GatewayProcess(model, address, tmp_path / "log", "--recovery-timeout-s", "6") as gateway:
        with FakeScheduler(address) as scheduler:
            wait_until_serving(gateway, scheduler)
            left = start(gateway)
            stub = gateway.stub()
            patient = stub.Generate(generate_request(), timeout=TIMEOUT_S)
            for _ in range(2):
                scheduler.take(Submit)
            # The connection is there, so the call reaches the scheduler in time.
            hurried = stub.Generate(generate_request(), timeout=3.0)
            scheduler.take(Submit)
            assert next(left).HasField("accepted")
        left.cancel()
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            list(hurried)
        check_unavailable(patient, "none was ready within 6 s")
        with FakeScheduler(address) as scheduler:
            wait_until_serving(gateway, scheduler)
            check_serves(gateway, scheduler)
            assert scheduler.take_all() == []


def test_rubbish_from_the_scheduler_is_dropped(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        call = start(gateway)
        stream_id = scheduler.take(Submit).stream_id
        header = MAGIC + scheduler.incarnation + ANY
        for parts in [
            (b"",),
            (b"rubbish",),
            (secrets.token_bytes(1000),),
            (MAGIC,),
            (header,),
            (header + b"\xc1",),
            (header + secrets.token_bytes(100),),
            (b"two", b"parts"),
            (b"\x00" * 1_000_000,),
        ]:
            scheduler.send_bytes(*parts)
        codec: Codec[GatewayMessage] = Codec(GatewayMessage)
        good = StepTokens((stream_id).to_bytes(4, "little"), b"\x01\x00\x00\x00", [stop_at_length(stream_id)])
        # Not for this gateway, not from this scheduler, arrays that are none, a READY engine without a model.
        scheduler.send(good, recipient=new_incarnation())
        scheduler.send(good, sender=new_incarnation())
        scheduler.send_bytes(codec.encode(good, scheduler.incarnation, ANY))
        scheduler.send(StepTokens(b"\x01\x00\x00", b"\x01\x00\x00", []))
        scheduler.send(StepTokens(b"\x01\x00\x00\x00" * 2, b"\x01\x00\x00\x00", []))
        scheduler.send(EngineStatus(EngineState.READY, None, None, Load(0, 0, 0), "", 0, 0, ""))
        # Streams that nobody knows.
        scheduler.send_tokens([(4_000_000_000, 1)], stop_at_length(4_000_000_001))
        scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
        assert "".join(event.delta.text for event in call) == "ok"
        check_serves(gateway, scheduler)


def test_token_that_is_none_ends_its_stream_alone(gateway: GatewayProcess, address: str) -> None:
    with FakeScheduler(address) as scheduler:
        wait_until_serving(gateway, scheduler)
        stub = gateway.stub()
        requests = [generate_request(), generate_request(stopping={"stop": ["x"]}), generate_request()]
        calls, ids = [], []
        for request in requests:
            calls.append(stub.Generate(request, timeout=TIMEOUT_S))
            ids.append(scheduler.take(Submit).stream_id)
        scheduler.send_tokens([(ids[0], -1), (ids[1], -1), *((ids[2], token) for token in byte_level_ids(b"k"))])
        for call in calls[:2]:
            with pytest.raises(grpc.RpcError, match="INTERNAL"):
                list(call)
        aborted = [*scheduler.take(Abort).stream_ids]
        while len(aborted) < 2:
            aborted += scheduler.take(Abort).stream_ids
        assert set(aborted) == set(ids[:2])
        scheduler.send_tokens([], stop_at_length(ids[2]))
        assert "".join(event.delta.text for event in calls[2]) == "k"


def test_two_gateways_share_a_scheduler(gateway: GatewayProcess, address: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with (
        FakeScheduler(address) as scheduler,
        GatewayProcess(model, address, tmp_path / "log") as other,
    ):
        for each in (gateway, other):
            wait_until_serving(each, scheduler)
        assert server_info(gateway).gateway_incarnation != server_info(other).gateway_incarnation
        calls = [start(each) for each in (gateway, other)]
        stream_ids = {scheduler.take(Submit).stream_id for _ in calls}
        for stream_id in stream_ids:
            scheduler.send_stream(stream_id, byte_level_ids(b"ok"), stop_at_length(stream_id))
        # The fake speaks to every gateway; each must end its own stream by itself.
        assert ["".join(event.delta.text for event in call) for call in calls] == ["ok", "ok"]
