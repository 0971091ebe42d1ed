"""Several completions of one prompt in one call: a real gRPC client, a gateway, and a scheduler played by the test."""

from typing import Any

import grpc
import pytest

from pagewire.ipc.requests import Abort, Ended, EndReason, Rejected, RejectReason, Submit
from pagewire.v1 import generate_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length, stop_at_token
from tests.fakes.gateway_process import generate_request
from tests.fakes.tiny_model import byte_level_ids

LAST_SEED = 2**64 - 1


def take_submits(scheduler: FakeScheduler, count: int) -> list[Submit]:
    return [scheduler.take(Submit) for _ in range(count)]


def test_choices_are_streams_that_differ_by_their_seeds(stub: Any, scheduler: FakeScheduler) -> None:
    sampling = generate_pb2.SamplingParams(n=3, seed=LAST_SEED)
    call = stub.Generate(generate_request(sampling=sampling, request_id="a"))
    submits = take_submits(scheduler, 3)
    assert [submit.request_id for submit in submits] == ["a", "a#1", "a#2"]
    assert [submit.sampling.seed for submit in submits] == [LAST_SEED, 0, 1]
    assert len({submit.token_ids for submit in submits}) == 1
    accepted = next(call).accepted
    assert (accepted.request_id, accepted.seed) == ("a", LAST_SEED)
    texts, end = [b"one", b"three", b"x"], byte_level_ids(b".")[0]
    for submit, text in zip(submits[::-1], texts[::-1], strict=True):
        last = stop_at_token(submit.stream_id, end) if text == b"one" else stop_at_length(submit.stream_id)
        scheduler.send_stream(submit.stream_id, [*byte_level_ids(text), *([end] if text == b"one" else [])], last)
    *deltas, last_event = call
    for index, text in enumerate(texts):
        assert "".join(event.delta.text for event in deltas if event.delta.index == index) == text.decode()
    finished = last_event.finished
    assert [(choice.index, choice.reason) for choice in finished.choices] == [
        (0, generate_pb2.FINISH_REASON_STOP),
        (1, generate_pb2.FINISH_REASON_LENGTH),
        (2, generate_pb2.FINISH_REASON_LENGTH),
    ]
    assert finished.choices[0].stop_token_id == finished.stop_token_id == end
    assert finished.reason == generate_pb2.FINISH_REASON_STOP
    assert finished.usage.num_output_tokens == 4 + 5 + 1


def test_a_choice_that_fails_ends_the_others(stub: Any, scheduler: FakeScheduler) -> None:
    call = stub.Generate(generate_request(sampling=generate_pb2.SamplingParams(n=3)))
    first, second, third = take_submits(scheduler, 3)
    scheduler.send_tokens([], Ended(second.stream_id, EndReason.FAILED, None, 0, "NaN logits"))
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert set(scheduler.take(Abort).stream_ids) == {first.stream_id, third.stream_id}


def test_a_refused_choice_refuses_the_request(stub: Any, scheduler: FakeScheduler) -> None:
    scheduler.accepts = False
    call = stub.Generate(generate_request(sampling=generate_pb2.SamplingParams(n=2)))
    first, second = take_submits(scheduler, 2)
    scheduler.send(Rejected(first.stream_id, RejectReason.OVERLOADED, "", "too many"))
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert scheduler.take(Abort).stream_ids == (second.stream_id,)


def test_a_caller_who_leaves_ends_all_choices(stub: Any, scheduler: FakeScheduler) -> None:
    call = stub.Generate(generate_request(sampling=generate_pb2.SamplingParams(n=2)))
    submits = take_submits(scheduler, 2)
    next(call)
    call.cancel()
    assert set(scheduler.take(Abort).stream_ids) == {submit.stream_id for submit in submits}


def test_choices_are_resumed_where_each_was_cut(stub: Any, scheduler: FakeScheduler) -> None:
    received = byte_level_ids(b"ab")
    resume = generate_pb2.Resume(
        request_id="a", seed=5, choices=[generate_pb2.ReceivedChoice(index=1, received_token_ids=received)]
    )
    call = stub.Generate(generate_request(sampling=generate_pb2.SamplingParams(n=2), resume=resume))
    first, second = take_submits(scheduler, 2)
    assert (first.num_prompt_tokens * 4, first.sampling.seed) == (len(first.token_ids), 5)
    assert list(memoryview(second.token_ids).cast("i"))[second.num_prompt_tokens :] == received
    assert (second.sampling.seed, second.request_id, second.resumes) == (6, "a#1", True)
    for submit in (first, second):
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"c"), stop_at_length(submit.stream_id))
    *events, last_event = call
    assert sorted((event.delta.index, event.delta.text) for event in events[1:]) == [(0, "c"), (1, "c")]
    assert last_event.finished.usage.num_output_tokens == 1 + 3


@pytest.mark.parametrize(
    ("n", "resume", "field"),
    [
        (1, {"choices": [{"index": 0}]}, "resume.choices"),
        (2, {"received_token_ids": [1]}, "resume.received_token_ids"),
        (2, {"choices": [{"index": 2}]}, "resume.choices[0].index"),
        (2, {"choices": [{"index": 1, "received_token_ids": [1]}, {"index": 1}]}, "resume.choices[1].index"),
        (2, {"choices": [{"index": 1, "received_token_ids": [10**6]}]}, "resume.choices[0].received_token_ids[0]"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused(stub: Any, n: int, resume: dict[str, Any], field: str) -> None:
    message = generate_pb2.Resume(request_id="a", **resume)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(generate_request(sampling=generate_pb2.SamplingParams(n=n), resume=message)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(caught.value.details())
