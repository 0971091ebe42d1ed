"""Does a Generate call over real sockets give each event once and in order, and reach the scheduler as it was meant?"""

import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from pagewire.ipc.requests import Abort, Ended, EndReason, Rejected, RejectReason, Submit
from pagewire.v1 import generate_pb2, inference_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length, stop_at_token
from tests.fakes.gateway_process import (
    MODEL_NAME,
    TIMEOUT_S,
    error_reason,
    generate_request,
    status_detail,
)
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids
from tests.integration.conftest import EOS_ID


def start(stub: Any, **fields: Any) -> Any:
    """A call and its Accepted event."""
    fields.setdefault("token_ids", {"ids": [1, 2, 3]})
    call = stub.Generate(generate_request(**fields), timeout=TIMEOUT_S)
    return call, next(call).accepted


def read(call: Any) -> tuple[list[int], str, generate_pb2.Finished]:
    """All tokens and text after Accepted, and the last event, which must be Finished."""
    events = list(call)
    assert [event.WhichOneof("event") for event in events] == ["delta"] * (len(events) - 1) + ["finished"]
    deltas = [event.delta for event in events[:-1]]
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    return token_ids, "".join(delta.text for delta in deltas), events[-1].finished


def test_generate_gives_accepted_deltas_finished(stub: Any, scheduler: FakeScheduler) -> None:
    call, accepted = start(stub, request_id="r-1", sampling={"seed": 77})
    submit = scheduler.take(Submit)
    assert accepted == generate_pb2.Accepted(request_id="r-1", seed=77, num_prompt_tokens=3, model=MODEL_NAME)
    assert (submit.request_id, submit.sampling.seed, submit.num_prompt_tokens) == ("r-1", 77, 3)
    assert list(memoryview(submit.token_ids).cast("i")) == [1, 2, 3]
    ended = Ended(submit.stream_id, EndReason.LENGTH, None, 2, "")
    scheduler.send_stream(submit.stream_id, byte_level_ids("grüße".encode()), ended)
    token_ids, text, finished = read(call)
    assert (token_ids, text) == (byte_level_ids("grüße".encode()), "grüße")
    assert finished.reason == generate_pb2.FINISH_REASON_LENGTH
    assert finished.usage == generate_pb2.Usage(num_prompt_tokens=3, num_cached_tokens=2, num_output_tokens=7)
    assert finished.WhichOneof("matched") is None


def test_generate_draws_id_and_seed(stub: Any, scheduler: FakeScheduler) -> None:
    accepted = []
    for _ in range(2):
        call, event = start(stub)
        submit = scheduler.take(Submit)
        assert (submit.request_id, submit.sampling.seed) == (event.request_id, event.seed)
        accepted.append(event)
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
        read(call)
    assert accepted[0].request_id != accepted[1].request_id
    assert accepted[0].seed != accepted[1].seed


def test_generate_streams_tokens_as_they_come(stub: Any, scheduler: FakeScheduler) -> None:
    call, _ = start(stub)
    stream_id = scheduler.take(Submit).stream_id
    for letter in (b"a", b"b"):
        scheduler.send_stream(stream_id, byte_level_ids(letter))
        assert next(call).delta == generate_pb2.Delta(token_ids=byte_level_ids(letter), text=letter.decode())
    scheduler.send_tokens([], stop_at_length(stream_id))
    assert read(call)[:2] == ([], "")


def test_generate_final_only_gives_one_delta_at_the_end(stub: Any, scheduler: FakeScheduler) -> None:
    call, _ = start(stub, output={"kind": "OUTPUT_KIND_FINAL_ONLY"})
    stream_id = scheduler.take(Submit).stream_id
    for letter in (b"a", b"b"):
        scheduler.send_stream(stream_id, byte_level_ids(letter))
    scheduler.send_stream(stream_id, byte_level_ids(b"c"), stop_at_length(stream_id))
    delta, last = list(call)
    assert delta.delta == generate_pb2.Delta(token_ids=byte_level_ids(b"abc"), text="abc")
    assert last.finished.usage.num_output_tokens == 3


def test_generate_reports_the_stop_token(stub: Any, scheduler: FakeScheduler) -> None:
    call, _ = start(stub, stopping={"stop_token_ids": [7]})
    submit = scheduler.take(Submit)
    assert submit.stop_token_ids == (7,)
    scheduler.send_stream(submit.stream_id, [*byte_level_ids(b"hi"), EOS_ID], stop_at_token(submit.stream_id, EOS_ID))
    token_ids, text, finished = read(call)
    assert (token_ids[-1], text) == (EOS_ID, "hi")
    assert (finished.reason, finished.stop_token_id) == (generate_pb2.FINISH_REASON_STOP, EOS_ID)


def test_generate_stops_at_a_text_and_tells_the_scheduler_once(stub: Any, scheduler: FakeScheduler) -> None:
    call, _ = start(stub, stopping={"stop": ["END", "zzz"]})
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_stream(stream_id, byte_level_ids(b"one ENDtwo"))
    token_ids, text, finished = read(call)
    assert (token_ids, text) == (byte_level_ids(b"one END"), "one ")
    assert (finished.reason, finished.stop) == (generate_pb2.FINISH_REASON_STOP, "END")
    assert finished.usage.num_output_tokens == 7
    assert scheduler.take(Abort) == Abort((stream_id,), complete_ids=(stream_id,))


def test_generate_renders_chats(stub: Any, scheduler: FakeScheduler) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    call, accepted = start(stub, token_ids=None, chat=chat)
    submit = scheduler.take(Submit)
    prompt = list(memoryview(submit.token_ids).cast("i"))
    assert prompt == list(stub.Tokenize(inference_pb2.TokenizeRequest(chat=generate_request(chat=chat).chat)).token_ids)
    text = stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=prompt, skip_special_tokens=False)).text
    assert text == "<|turn|>user\nhello<|end|>\n<|turn|>assistant\n"
    assert accepted.num_prompt_tokens == len(prompt)
    call.cancel()
    scheduler.take(Abort)


def test_generate_resumes_where_the_stream_was_cut(stub: Any, scheduler: FakeScheduler) -> None:
    whole = byte_level_ids("früher".encode())
    resume = {"request_id": "cut", "seed": 5, "received_token_ids": whole[:3]}
    call, accepted = start(stub, resume=resume, stopping={"max_tokens": 50})
    submit = scheduler.take(Submit)
    assert (accepted.request_id, accepted.seed) == ("cut", 5)
    assert list(memoryview(submit.token_ids).cast("i")) == [1, 2, 3, *whole[:3]]
    assert (submit.num_prompt_tokens, submit.max_tokens) == (3, 50)
    scheduler.send_stream(submit.stream_id, whole[3:], stop_at_length(submit.stream_id))
    token_ids, text, finished = read(call)
    # The first three tokens end within "ü", whose text had not been given out.
    assert (token_ids, text) == (whole[3:], "üher")
    assert finished.usage.num_output_tokens == len(whole)


def test_generate_resumed_at_its_end_finishes_without_the_scheduler(stub: Any, scheduler: FakeScheduler) -> None:
    resume = {"request_id": "cut", "seed": 5, "received_token_ids": [1, EOS_ID]}
    call, _ = start(stub, resume=resume)
    assert read(call)[2].stop_token_id == EOS_ID
    assert scheduler.take_all() == []


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (RejectReason.INVALID, grpc.StatusCode.INVALID_ARGUMENT),
        (RejectReason.OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (RejectReason.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_generate_passes_a_rejection_on(
    stub: Any, scheduler: FakeScheduler, reason: RejectReason, code: grpc.StatusCode
) -> None:
    scheduler.accepts = False
    call = stub.Generate(generate_request(), timeout=TIMEOUT_S)
    scheduler.send(Rejected(scheduler.take(Submit).stream_id, reason, "max_tokens", "is too much", 2.0))
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() == code
    assert "is too much" in str(caught.value.details())
    if reason is RejectReason.INVALID:
        (violation,) = status_detail(caught.value, error_details_pb2.BadRequest).field_violations
        assert violation.field == "stopping.max_tokens"
    else:
        assert status_detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


def test_generate_passes_a_failure_on_after_the_tokens(stub: Any, scheduler: FakeScheduler) -> None:
    call, _ = start(stub)
    stream_id = scheduler.take(Submit).stream_id
    scheduler.send_stream(stream_id, byte_level_ids(b"a"), Ended(stream_id, EndReason.FAILED, None, 0, "NaN logits"))
    assert next(call).delta.text == "a"
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert str(caught.value.details()) == "NaN logits"
    assert error_reason(caught.value) == "SEQUENCE_FAILED"


def test_generate_hands_the_deadline_on(stub: Any, scheduler: FakeScheduler) -> None:
    before = time.time()
    call = stub.Generate(generate_request(), timeout=PATIENCE_S)
    submit = scheduler.take(Submit)
    assert submit.deadline_s is not None
    # gRPC rounds what is left of the time up when it sends it.
    assert before + 0.9 * PATIENCE_S < submit.deadline_s < time.time() + 1.1 * PATIENCE_S
    next(call)
    scheduler.send_tokens([], Ended(submit.stream_id, EndReason.DEADLINE, None, 0, ""))
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_generate_without_deadline_submits_none(stub: Any, scheduler: FakeScheduler) -> None:
    call = stub.Generate(generate_request())
    assert scheduler.take(Submit).deadline_s is None
    call.cancel()
    scheduler.take(Abort)


def test_generate_aborts_at_the_deadline_though_the_scheduler_is_silent(stub: Any, scheduler: FakeScheduler) -> None:
    # The connection is there, so the call reaches the gateway in time.
    stub.ListModels(inference_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
    call = stub.Generate(generate_request(), timeout=4.0)
    stream_id = scheduler.take(Submit).stream_id
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert scheduler.take(Abort) == Abort((stream_id,))


def test_generate_gives_each_of_many_streams_its_own_tokens(stub: Any, scheduler: FakeScheduler) -> None:
    calls = {}
    for index in range(20):
        call, _ = start(stub, request_id=f"r{index}")
        calls[scheduler.take(Submit).stream_id] = call, f"stream {index}"
    for position in range(9):
        step = [
            (stream_id, byte_level_ids(text.encode())[position])
            for stream_id, (_, text) in calls.items()
            if position < len(text)
        ]
        ended = [stop_at_length(stream_id) for stream_id, (_, text) in calls.items() if position == len(text) - 1]
        scheduler.send_tokens(step, *ended)
    assert all(read(call)[1] == text for call, text in calls.values())
