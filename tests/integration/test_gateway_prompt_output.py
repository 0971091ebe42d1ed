"""What comes of the prompt itself, echo and log probabilities: a real gRPC client, a gateway, a played scheduler."""

import struct
from typing import Any

import pytest

from pagewire.ipc.requests import StepTokens, Submit
from pagewire.v1 import generate_pb2
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.gateway_process import generate_request
from tests.fakes.tiny_model import byte_level_ids

PROMPT = [3, 4, 5, 6, 7]


def records_of(token_ids: list[int]) -> bytes:
    """As a scheduler would tell of them: each of rank 2, behind the token before it."""
    return b"".join(struct.pack("<ifif", 2, -1.5, token_id - 1, -0.5) for token_id in token_ids)


def tell(scheduler: FakeScheduler, stream_id: int, token_ids: list[int]) -> None:
    scheduler.send(StepTokens(b"", b"", [], prompt_logprobs={stream_id: records_of(token_ids)}))


def ask(**fields: Any) -> generate_pb2.GenerateRequest:
    fields.setdefault("token_ids", generate_pb2.TokenIds(ids=PROMPT))
    return generate_request(**fields)


def prompt_tokens(events: list[Any]) -> list[int]:
    return [entry.token_id for event in events for entry in event.delta.prompt_logprobs]


def test_log_probabilities_of_the_prompt_come_with_the_first_choice(stub: Any, scheduler: FakeScheduler) -> None:
    output = generate_pb2.OutputOptions(prompt_logprobs=1)
    call = stub.Generate(ask(output=output, sampling=generate_pb2.SamplingParams(n=2)))
    first, second = scheduler.take(Submit), scheduler.take(Submit)
    assert (first.sampling.num_prompt_logprobs, second.sampling.num_prompt_logprobs) == (1, None)
    assert next(call).HasField("accepted")
    tell(scheduler, first.stream_id, PROMPT[1:3])
    delta = next(call).delta
    assert [(entry.token_id, entry.logprob, entry.rank) for entry in delta.prompt_logprobs] == [
        (4, -1.5, 2),
        (5, -1.5, 2),
    ]
    assert [(top.token_id, top.logprob) for entry in delta.prompt_logprobs for top in entry.top] == [
        (3, -0.5),
        (4, -0.5),
    ]
    assert (delta.index, delta.text, list(delta.token_ids)) == (0, "", [])
    tell(scheduler, first.stream_id, PROMPT[3:])
    for submit in (first, second):
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
    *events, last = call
    assert prompt_tokens(events) == PROMPT[3:]
    assert sorted((event.delta.index, event.delta.text) for event in events if event.delta.text) == [(0, "x"), (1, "x")]
    assert last.finished.usage.num_output_tokens == 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text": "hi there", "add_special_tokens": True}, "hi there"),
        ({"text": "hi there", "truncate_prompt_tokens": 5}, " there"),
        ({"token_ids": generate_pb2.TokenIds(ids=byte_level_ids("größe".encode()))}, "größe"),
    ],
)
def test_each_choice_begins_with_the_prompt(
    stub: Any, scheduler: FakeScheduler, fields: dict[str, Any], text: str
) -> None:
    output = generate_pb2.OutputOptions(echo=True, kind=generate_pb2.OUTPUT_KIND_FINAL_ONLY)
    fields = {"token_ids": None, **fields}
    request = ask(output=output, sampling=generate_pb2.SamplingParams(n=2), **fields)
    call = stub.Generate(request)
    submits = scheduler.take(Submit), scheduler.take(Submit)
    next(call)
    echoes = [next(call).delta, next(call).delta]
    assert [echo.index for echo in echoes] == [0, 1]
    for echo, submit in zip(echoes, submits, strict=True):
        assert (echo.text, list(echo.token_ids)) == (text, [])
        assert list(echo.prompt_token_ids) == list(memoryview(submit.token_ids).cast("i"))
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"!"), stop_at_length(submit.stream_id))
    *events, last = call
    assert sorted((event.delta.index, event.delta.text) for event in events) == [(0, "!"), (1, "!")]
    assert last.finished.usage.num_output_tokens == 2


def test_an_echo_without_text_has_the_tokens_alone(stub: Any, scheduler: FakeScheduler) -> None:
    call = stub.Generate(ask(output=generate_pb2.OutputOptions(echo=True, token_ids_only=True)))
    submit = scheduler.take(Submit)
    next(call)
    echo = next(call).delta
    assert (echo.text, list(echo.prompt_token_ids)) == ("", PROMPT)
    scheduler.send_stream(submit.stream_id, [9], stop_at_length(submit.stream_id))
    assert [list(event.delta.token_ids) for event in call] == [[9], []]


def test_what_the_caller_has_of_the_prompt_does_not_come_again(stub: Any, scheduler: FakeScheduler) -> None:
    resume = generate_pb2.Resume(request_id="a", seed=1, num_received_prompt_logprobs=3, num_received_echoes=1)
    output = generate_pb2.OutputOptions(echo=True, prompt_logprobs=1)
    call = stub.Generate(ask(output=output, sampling=generate_pb2.SamplingParams(n=2), resume=resume))
    first, second = scheduler.take(Submit), scheduler.take(Submit)
    assert (first.num_known_prompt_logprobs, second.num_known_prompt_logprobs) == (3, 0)
    tell(scheduler, first.stream_id, PROMPT[4:])
    for submit in (first, second):
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"), stop_at_length(submit.stream_id))
    accepted, *events, _ = call
    assert accepted.HasField("accepted")
    assert [event.delta.index for event in events if event.delta.prompt_token_ids] == [1]
    assert prompt_tokens(events) == PROMPT[4:]


def test_another_scheduler_is_told_what_has_arrived(stub: Any, scheduler: FakeScheduler) -> None:
    call = stub.Generate(ask(output=generate_pb2.OutputOptions(prompt_logprobs=1)))
    old = scheduler.take(Submit)
    tell(scheduler, old.stream_id, PROMPT[1:3])
    scheduler.become_another()
    new = scheduler.take(Submit)
    assert (old.num_known_prompt_logprobs, new.num_known_prompt_logprobs) == (0, 2)
    assert new.was_accepted
    tell(scheduler, new.stream_id, PROMPT[3:])
    scheduler.send_stream(new.stream_id, byte_level_ids(b"x"), stop_at_length(new.stream_id))
    *events, _ = call
    assert prompt_tokens(events) == PROMPT[1:]
