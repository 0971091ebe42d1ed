"""Does OpenAI's own client get what it asks for, from a gateway over a scheduler that the test plays?"""

import asyncio
from array import array
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
import openai
import pytest

from pagewire.ipc.requests import (
    Abort,
    Ended,
    EndReason,
    Penalties,
    Rejected,
    RejectReason,
    Started,
    StepTokens,
    Submit,
)
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length, stop_at_token
from tests.fakes.gateway_process import MODEL_NAME, GatewayProcess
from tests.fakes.openai_gateway import http_gateway
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids, byte_level_tokenizer
from tests.integration.conftest import EOS_ID

Result = TypeVar("Result")
MODEL = MODEL_NAME
QUESTION: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, int]]:
    with http_gateway(scheduler, tmp_path_factory.mktemp("openai")) as (gateway, port):
        yield gateway, port
        assert gateway.stop() == 0


@pytest.fixture
def base_url(served: tuple[GatewayProcess, int], scheduler: FakeScheduler) -> str:
    assert scheduler.take_all() == []
    scheduler.accepts = True
    return f"http://127.0.0.1:{served[1]}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=PATIENCE_S) as one:
        yield one


def answer(scheduler: FakeScheduler, submit: Submit, text: bytes, end: Ended | None = None) -> None:
    scheduler.send_stream(submit.stream_id, byte_level_ids(text), end or stop_at_length(submit.stream_id))


def prompt_text(submit: Submit) -> str:
    ids = array("i")
    ids.frombytes(submit.token_ids)
    return str(byte_level_tokenizer().decode(list(ids), skip_special_tokens=False))


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "pagewire")
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 512
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_completion_is_whole(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    call = beside(lambda: client.completions.create(model=MODEL, prompt="hello world", max_tokens=4, seed=7))
    submit = scheduler.take(Submit)
    assert prompt_text(submit) == "hello world"
    assert (submit.max_tokens, submit.sampling.seed, submit.sampling.temperature) == (4, 7, 1.0)
    started = StepTokens(b"", b"", [], started=[Started(submit.stream_id, 1)])
    scheduler.send(started)
    answer(scheduler, submit, b"abcd")
    completion = call.result(PATIENCE_S)
    assert completion.object == "text_completion"
    assert completion.id == f"cmpl-{completion._request_id}"
    (choice,) = completion.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "abcd", "length", None)
    usage = completion.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 4, 8)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1


def test_a_chat_completion_is_whole(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "and?"},
    ]
    call = beside(lambda: client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=9))
    submit = scheduler.take(Submit)
    turns = ("system\nbe\nkind", "user\nhello", "assistant\nhi", "user\nand?")
    assert prompt_text(submit) == "".join(f"<|turn|>{turn}<|end|>\n" for turn in turns) + "<|turn|>assistant\n"
    assert submit.max_tokens == 9
    scheduler.send_stream(
        submit.stream_id, [*byte_level_ids("é!".encode()), EOS_ID], stop_at_token(submit.stream_id, EOS_ID)
    )
    completion = call.result(PATIENCE_S)
    assert completion.object == "chat.completion"
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "é!", "stop")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4


def test_streams_end_with_their_usage(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    stream: Any = beside(
        lambda: client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    submit = scheduler.take(Submit)
    first = next(chunks := iter(stream.result(PATIENCE_S)))
    assert (first.choices[0].delta.role, first.choices[0].delta.content, first.usage) == ("assistant", "", None)
    texts = []
    for letter in "héy":
        scheduler.send_stream(submit.stream_id, byte_level_ids(letter.encode()))
        texts.append(next(chunks).choices[0].delta.content)
    scheduler.send_tokens([(submit.stream_id, EOS_ID)], stop_at_token(submit.stream_id, EOS_ID))
    last, usage = list(chunks)
    assert texts == ["h", "é", "y"]
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("stop", None)
    assert usage.choices == []
    assert usage.usage.completion_tokens == 5
    assert len({chunk.id for chunk in (first, last, usage)}) == 1


def test_prompts_and_choices_are_numbered(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    call = beside(lambda: client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=1))
    submits = sorted((scheduler.take(Submit) for _ in range(4)), key=lambda submit: submit.request_id)
    by_prompt = [[submit for submit in submits if prompt_text(submit) == prompt] for prompt in "ab"]
    seeds = [submit.sampling.seed for group in by_prompt for submit in group]
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    for number, submit in enumerate(submit for group in by_prompt for submit in group):
        answer(scheduler, submit, str(number).encode())
    completion = call.result(PATIENCE_S)
    assert [(choice.index, choice.text) for choice in completion.choices] == [(n, str(n)) for n in range(4)]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 4)


def test_lists_of_token_ids_are_prompts_too(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    call = beside(lambda: client.completions.create(model=MODEL, prompt=[[1, 2], [3]], seed=5, max_tokens=1))
    submits = [scheduler.take(Submit) for _ in range(2)]
    assert sorted(len(submit.token_ids) // 4 for submit in submits) == [1, 2]
    # A prompt in a batch gets what it gets alone.
    assert [submit.sampling.seed for submit in submits] == [5, 5]
    for submit in submits:
        answer(scheduler, submit, b"x")
    assert [choice.text for choice in call.result(PATIENCE_S).choices] == ["x", "x"]


def test_parameters_reach_the_scheduler(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [9],
        "allowed_token_ids": [1, 2, 3],
        "bad_words": ["hello"],
        "priority": -4,
        "cache_salt": "s",
        "truncate_prompt_tokens": 3,
        "include_stop_str_in_output": True,
        "user": "u",
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "echo": False,
        "suffix": None,
        "best_of": 1,
    }
    call = beside(
        lambda: client.completions.create(
            model=MODEL,
            prompt=[1, 2, 3, 4],
            temperature=0.5,
            top_p=0.9,
            seed=-1,
            presence_penalty=0.25,
            frequency_penalty=0.5,
            logit_bias={"7": -100},
            stop="b",
            max_tokens=8,
            extra_body=extra,
        )
    )
    submit = scheduler.take(Submit)
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert sampling.seed == 2**64 - 1
    assert sampling.penalties is not None
    assert sampling.penalties == Penalties(repetition=1.5, frequency=0.5, presence=0.25)
    assert sampling.rules is not None
    assert (sampling.rules.allowed_ids, sampling.rules.bias_ids) == (
        array("i", [1, 2, 3]).tobytes(),
        array("i", [7]).tobytes(),
    )
    assert len(sampling.rules.bad_words) == 2
    assert (submit.min_tokens, submit.ignore_eos, submit.stop_token_ids) == (2, True, (9,))
    # What vLLM serves first has the lowest number, here the highest.
    assert (submit.priority, submit.cache_salt, submit.num_prompt_tokens) == (4, "s", 3)
    scheduler.send_stream(submit.stream_id, byte_level_ids(b"aacb"))
    choice = call.result(PATIENCE_S).choices[0]
    assert (choice.text, choice.finish_reason, choice.model_extra["stop_reason"]) == ("aacb", "stop", "b")
    assert scheduler.take(Abort).stream_ids == (submit.stream_id,)


def test_async_clients_are_served_at_once(base_url: str, scheduler: FakeScheduler) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            texts = [f"{number}" for number in range(8)]
            calls = [
                asyncio.create_task(client.completions.create(model=MODEL, prompt=text, max_tokens=1)) for text in texts
            ]
            for _ in texts:
                submit = await asyncio.to_thread(scheduler.take, Submit)
                answer(scheduler, submit, prompt_text(submit).encode())
            assert [completion.choices[0].text for completion in await asyncio.gather(*calls)] == texts
            stream = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True))
            submit = await asyncio.to_thread(scheduler.take, Submit)
            answer(scheduler, submit, b"yes")
            chunks = [chunk async for chunk in await stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "yes"

    asyncio.run(run())


@pytest.mark.parametrize("is_stream", [True, False])
def test_whoever_leaves_ends_the_generation(
    client: openai.OpenAI, scheduler: FakeScheduler, beside: Any, is_stream: bool
) -> None:
    impatient: Any = client.with_options(timeout=openai.Timeout(PATIENCE_S, read=0.5))
    call = beside(lambda: list(impatient.completions.create(model=MODEL, prompt="a", n=2, stream=is_stream)))
    submits = [scheduler.take(Submit) for _ in range(2)]
    with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
        call.result(PATIENCE_S)
    assert set(scheduler.take(Abort).stream_ids) == {submit.stream_id for submit in submits}


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        (RejectReason.OVERLOADED, openai.RateLimitError, "engine_overloaded"),
        (RejectReason.UNAVAILABLE, openai.InternalServerError, "engine_unavailable"),
        (RejectReason.INVALID, openai.BadRequestError, "invalid_value"),
    ],
)
def test_refusals_have_their_status(
    client: openai.OpenAI,
    scheduler: FakeScheduler,
    beside: Any,
    reason: RejectReason,
    kind: type[openai.APIStatusError],
    code: str,
    is_stream: bool,
) -> None:
    scheduler.accepts = False
    call = beside(lambda: client.completions.create(model=MODEL, prompt=["a", "b"], stream=is_stream))
    first, second = (scheduler.take(Submit) for _ in range(2))
    accepted = array("I", [second.stream_id]).tobytes()
    scheduler.send(StepTokens(b"", b"", [], accepted=accepted))
    scheduler.send(Rejected(first.stream_id, reason, "max_tokens", "so it is", 2.5))
    with pytest.raises(kind) as caught:
        call.result(PATIENCE_S)
    assert caught.value.code == code
    assert caught.value.param == ("max_tokens" if reason is RejectReason.INVALID else None)
    retry = {RejectReason.OVERLOADED: "2500", RejectReason.UNAVAILABLE: "1000"}.get(reason)
    assert caught.value.response.headers.get("retry-after-ms") == retry
    assert scheduler.take(Abort).stream_ids == (second.stream_id,)


def test_a_failure_in_a_stream_is_told_in_it(client: openai.OpenAI, scheduler: FakeScheduler, beside: Any) -> None:
    call: Any = beside(lambda: client.completions.create(model=MODEL, prompt="a", stream=True))
    submit = scheduler.take(Submit)
    chunks = iter(call.result(PATIENCE_S))
    scheduler.send_stream(submit.stream_id, byte_level_ids(b"x"))
    assert next(chunks).choices[0].text == "x"
    scheduler.send_tokens([], Ended(submit.stream_id, EndReason.FAILED, None, 0, "NaN logits"))
    with pytest.raises(openai.APIError, match="NaN logits") as caught:
        next(chunks)
    assert caught.value.code == "sequence_failed"
