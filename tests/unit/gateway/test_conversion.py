"""Is every field of a Generate request checked, and what is valid handed on as it was meant?"""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pagewire.ipc.requests import Limits, ModelInfo, Penalties, Sampling
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.conversion import to_generations
from scheduler_service.gateway.exceptions import (
    InvalidArgumentError,
    NoChatTemplateError,
    NotServedError,
    TemplateRefusedError,
)
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.served_model import ServedModel, read_served_model
from tests.fakes.tiny_model import byte_level_ids, write_tiny_model

VOCAB = 300
MODEL = ModelInfo("tiny", VOCAB, 64, (257,))
LIMITS = Limits(64, 8, 256, 16, 1000)
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return read_served_model(write_tiny_model(tmp_path_factory.mktemp("model"), add_bos_token=True), "tiny")


@pytest.fixture(scope="module")
def prompts(served: ServedModel) -> PromptReader:
    return PromptReader(served, ThreadPoolExecutor(1), trusts_request_templates=False)


def convert(
    prompts: PromptReader, *, limits: Limits = LIMITS, time_remaining_s: float | None = None, **fields: Any
) -> Generation:
    fields.setdefault("text", None if {"chat", "token_ids"} & fields.keys() else "hello")
    request = generate_pb2.GenerateRequest(**{name: value for name, value in fields.items() if value is not None})
    (generation,) = asyncio.run(
        to_generations(request, prompts=prompts, model=MODEL, limits=limits, time_remaining_s=time_remaining_s)
    )
    return generation


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"text": None}, "prompt", "set one of text, token_ids and chat"),
    ({"text": "", "add_special_tokens": False}, "text", "empty prompt"),
    ({"token_ids": {"ids": []}}, "token_ids", "empty prompt"),
    ({"token_ids": {"ids": [1, 2, VOCAB, 999]}}, "token_ids.ids[2]", "is 300, must be below"),
    ({"token_ids": {"ids": [1] * 64}}, "prompt", "has 64 tokens, .* max_model_len allows 64"),
    ({"token_ids": {"ids": [1] * 500}}, "prompt", "has 500 tokens"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "is 0"),
    ({"chat": {"messages": []}}, "chat.messages", "is empty"),
    ({"chat": {"messages": [{"content": "x"}]}}, "chat.messages[0].role", "is missing"),
    (
        {
            "chat": {
                "messages": [{"role": "user"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            }
        },
        "chat.add_generation_prompt",
        "excludes",
    ),
    (
        {"chat": {"messages": [{"role": "user"}], "template_args": {"messages": []}}},
        "chat.template_args.messages",
        "set by the server",
    ),
    ({"sampling": {"temperature": -0.1}}, "sampling.temperature", "must be 0 to 100"),
    ({"sampling": {"temperature": 100.5}}, "sampling.temperature", "must be 0 to 100"),
    ({"sampling": {"temperature": NAN}}, "sampling.temperature", "is nan"),
    ({"sampling": {"temperature": INF}}, "sampling.temperature", "is inf"),
    ({"sampling": {"top_p": 0.0}}, "sampling.top_p", "above 0"),
    ({"sampling": {"top_p": 1.1}}, "sampling.top_p", "at most 1"),
    ({"sampling": {"top_p": NAN}}, "sampling.top_p", "is nan"),
    ({"sampling": {"min_p": -0.1}}, "sampling.min_p", "must be 0 to 1"),
    ({"sampling": {"min_p": 1.1}}, "sampling.min_p", "must be 0 to 1"),
    ({"sampling": {"min_p": NAN}}, "sampling.min_p", "is nan"),
    ({"sampling": {"n": 0}}, "sampling.n", "must be 1 to 128"),
    ({"sampling": {"n": 129}}, "sampling.n", "must be 1 to 128"),
    ({"sampling": {"presence_penalty": 2.5}}, "sampling.presence_penalty", "must be -2 to 2"),
    ({"sampling": {"presence_penalty": NAN}}, "sampling.presence_penalty", "is nan"),
    ({"sampling": {"frequency_penalty": -2.5}}, "sampling.frequency_penalty", "must be -2 to 2"),
    ({"sampling": {"repetition_penalty": 0.0}}, "sampling.repetition_penalty", "must be 0.01 to 100"),
    ({"sampling": {"repetition_penalty": INF}}, "sampling.repetition_penalty", "is inf"),
    ({"sampling": {"repetition_penalty": NAN}}, "sampling.repetition_penalty", "is nan"),
    ({"sampling": {"logit_bias": {VOCAB: 1.0}}}, "sampling.logit_bias[0]", "is 300"),
    ({"sampling": {"logit_bias": {7: 100.5}}}, "sampling.logit_bias[7]", "is 100.5, must be -100 to 100"),
    ({"sampling": {"logit_bias": {7: NAN}}}, "sampling.logit_bias[7]", "is nan"),
    ({"sampling": {"logit_bias": dict.fromkeys(range(1025), 1.0)}}, "sampling.logit_bias", "has 1025 tokens"),
    ({"sampling": {"allowed_token_ids": [1, VOCAB]}}, "sampling.allowed_token_ids[1]", "is 300"),
    ({"sampling": {"banned_token_ids": [VOCAB]}}, "sampling.banned_token_ids[0]", "is 300"),
    ({"sampling": {"banned_token_ids": range(VOCAB)}}, "sampling.banned_token_ids", "leaves no token"),
    ({"sampling": {"allowed_token_ids": [1], "banned_token_ids": [1, 2]}}, "sampling.banned_token_ids", "leaves no"),
    ({"sampling": {"bad_words": ["x"] * 65}}, "sampling.bad_words", "has 65 texts"),
    ({"sampling": {"bad_words": ["x" * 33]}}, "sampling.bad_words[0]", "has 33 tokens, may have 32"),
    ({"sampling": {"bad_words": ["x", ""]}}, "sampling.bad_words[1]", "has 0 characters"),
    ({"output": {"logprobs": 21}}, "output.logprobs", "is 21, must be 0 to 20"),
    ({"output": {"prompt_logprobs": 21}}, "output.prompt_logprobs", "is 21, must be 0 to 20"),
    (
        {
            "token_ids": {"ids": [1] * 5},
            "output": {"prompt_logprobs": 0},
            "resume": {"request_id": "r", "num_received_prompt_logprobs": 5},
        },
        "resume.num_received_prompt_logprobs",
        "is 5, and this request has 4 in all",
    ),
    (
        {"resume": {"request_id": "r", "num_received_prompt_logprobs": 1}},
        "resume.num_received_prompt_logprobs",
        "is 1, and this request has 0 in all",
    ),
    (
        {"output": {"echo": True}, "resume": {"request_id": "r", "num_received_echoes": 2}},
        "resume.num_received_echoes",
        "is 2, and this request has 1 in all",
    ),
    ({"stopping": {"max_tokens": 0}}, "stopping.max_tokens", "is 0"),
    ({"stopping": {"max_tokens": 64}}, "stopping.max_tokens", "is 64, and with 2 prompt tokens more than the 64"),
    ({"stopping": {"max_tokens": 4, "min_tokens": 5}}, "stopping.min_tokens", "is 5, must be at most the 4"),
    ({"stopping": {"stop": ["a", ""]}}, "stopping.stop[1]", "has 0 characters"),
    ({"stopping": {"stop": ["x" * 1025]}}, "stopping.stop[0]", "has 1025 characters"),
    ({"stopping": {"stop": ["x"] * 17}}, "stopping.stop", "has 17 texts"),
    ({"stopping": {"stop_token_ids": [1, VOCAB]}}, "stopping.stop_token_ids[1]", "is 300"),
    ({"stopping": {"stop_token_ids": [1] * 257}}, "stopping.stop_token_ids", "has 257 ids"),
    ({"output": {"kind": 9}}, "output.kind", "is 9"),
    ({"priority": 1001}, "priority", "is 1001"),
    ({"priority": -1001}, "priority", "is -1001"),
    ({"request_id": "a b"}, "request_id", "1 to 64 characters"),
    ({"request_id": "x" * 65}, "request_id", "1 to 64 characters"),
    ({"request_id": "x\n"}, "request_id", "1 to 64 characters"),
    ({"resume": {"request_id": ""}}, "resume.request_id", "1 to 64 characters"),
    ({"resume": {"request_id": "a"}, "request_id": "b"}, "request_id", "differs"),
    ({"resume": {"request_id": "a", "seed": 1}, "sampling": {"seed": 2}}, "sampling.seed", "differs"),
    (
        {"resume": {"request_id": "a", "received_token_ids": [0, VOCAB]}},
        "resume.received_token_ids[1]",
        "is 300",
    ),
    (
        {"resume": {"request_id": "a", "received_token_ids": [1, 2, 3]}, "stopping": {"max_tokens": 2}},
        "resume.received_token_ids",
        "more ids than the 2",
    ),
]


@pytest.mark.parametrize(("fields", "field", "problem"), INVALID, ids=lambda value: str(value)[:60])
def test_conversion_refuses(prompts: PromptReader, fields: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        convert(prompts, **fields)
    assert caught.value.field == field


NOT_SERVED: list[tuple[dict[str, Any], str]] = [
    ({"constraint": {"regex": "a*"}}, "constraint"),
    ({"adapter": "lora"}, "adapter"),
]


@pytest.mark.parametrize(("fields", "field"), NOT_SERVED, ids=lambda value: str(value)[:60])
def test_conversion_refuses_what_is_not_served_yet(prompts: PromptReader, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(NotServedError) as caught:
        convert(prompts, **fields)
    assert caught.value.field == field


def test_conversion_takes_neutral_values_of_what_is_not_served(prompts: PromptReader) -> None:
    convert(prompts, sampling={"n": 1}, output={"echo": False})


def test_conversion_hands_on_penalties_and_logprobs(prompts: PromptReader) -> None:
    neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    assert convert(prompts, sampling=neutral).sampling.penalties is None
    some = {"presence_penalty": 0.5, "repetition_penalty": 1.25}
    sampling = convert(prompts, sampling=some, output={"logprobs": 0}).sampling
    assert (sampling.penalties, sampling.num_logprobs) == (Penalties(1.25, 0.0, 0.5), 0)
    assert convert(prompts, output={"logprobs": 20}).sampling.num_logprobs == 20


def test_conversion_hands_on_token_rules(prompts: PromptReader) -> None:
    assert convert(prompts).sampling.rules is None
    sampling = {
        "logit_bias": {7: 1.5, 9: -100.0},
        "allowed_token_ids": [3, 7, 3, 9],
        "banned_token_ids": [9],
        "bad_words": ["ab", " ab", "c"],
    }
    rules = convert(prompts, sampling=sampling).sampling.rules
    assert rules is not None
    biases = zip(memoryview(rules.bias_ids).cast("i"), memoryview(rules.biases).cast("f"), strict=True)
    assert dict(biases) == {7: 1.5, 9: -100.0}
    assert list(memoryview(rules.allowed_ids).cast("i")) == [3, 7, 9]
    assert list(memoryview(rules.banned_ids).cast("i")) == [9]
    words = [list(memoryview(word).cast("i")) for word in rules.bad_words]
    assert words == [byte_level_ids(text) for text in (b"ab", b" ab", b"c", b" c")]


def test_conversion_fills_in_defaults(prompts: PromptReader) -> None:
    first, second = convert(prompts), convert(prompts)
    submit = first.to_submit(7, first.received_ids, resumes=False, was_accepted=False)
    assert submit.sampling == Sampling(1.0, 0, 1.0, 0.0, first.sampling.seed)
    assert submit.stream_id == 7
    assert (submit.num_prompt_tokens, submit.max_tokens, submit.min_tokens) == (2, 62, 0)
    assert (submit.stop_token_ids, submit.ignore_eos, submit.deadline_s) == ((), False, None)
    assert (submit.priority, submit.cache_salt) == (0, "")
    assert (first.skip_special_tokens, first.sends_text, first.include_stop) == (True, True, False)
    assert not first.is_final_only
    assert first.sampling.seed != second.sampling.seed
    assert first.request_id != second.request_id


def test_conversion_hands_on_what_is_asked_for(prompts: PromptReader) -> None:
    generation = convert(
        prompts,
        token_ids={"ids": [5, 6, 299]},
        sampling={"temperature": 0.0, "top_k": 40, "top_p": 0.5, "min_p": 0.25, "seed": 2**64 - 1},
        stopping={
            "max_tokens": 61,
            "min_tokens": 61,
            "stop": ["x", "yy"],
            "stop_token_ids": [9, 8],
            "ignore_eos": True,
            "include_stop": True,
        },
        output={"skip_special_tokens": False, "token_ids_only": True, "kind": "OUTPUT_KIND_FINAL_ONLY"},
        priority=-1000,
        cache_salt="tenant",
        request_id="Az09._-",
    )
    submit = generation.to_submit(1, generation.received_ids, resumes=False, was_accepted=False)
    assert list(memoryview(submit.token_ids).cast("i")) == [5, 6, 299]
    assert submit.sampling == Sampling(0.0, 40, 0.5, 0.25, 2**64 - 1)
    assert (submit.request_id, submit.priority, submit.cache_salt) == ("Az09._-", -1000, "tenant")
    assert (submit.max_tokens, submit.min_tokens, submit.ignore_eos) == (61, 61, True)
    assert submit.stop_token_ids == (9, 8)
    assert generation.end_token_ids == {9, 8}
    assert (generation.stop_texts, generation.include_stop) == (("x", "yy"), True)
    assert (generation.skip_special_tokens, generation.sends_text, generation.is_final_only) == (False, False, True)


def test_conversion_takes_top_k_of_the_whole_vocabulary_as_none(prompts: PromptReader) -> None:
    assert convert(prompts, sampling={"top_k": VOCAB - 1}).sampling.top_k == VOCAB - 1
    assert convert(prompts, sampling={"top_k": 2**32 - 1}).sampling.top_k == 0


def test_conversion_adds_special_tokens_to_text_alone(prompts: PromptReader, served: ServedModel) -> None:
    bos, hello = served.tokenizer.encode("hello", add_special_tokens=True)
    assert list(convert(prompts).prompt_ids) == [bos, hello]
    assert list(convert(prompts, add_special_tokens=False).prompt_ids) == [hello]
    assert list(convert(prompts, token_ids={"ids": [hello]}).prompt_ids) == [hello]
    chat = convert(prompts, chat={"messages": [{"role": "u", "content": "hello"}], "add_generation_prompt": False})
    text = served.tokenizer.decode(list(chat.prompt_ids), skip_special_tokens=False)
    assert text == "<|turn|>u\nhello<|end|>\n"


def test_conversion_keeps_the_last_tokens_of_a_prompt_that_is_cut(prompts: PromptReader) -> None:
    ids = list(range(100))
    assert list(convert(prompts, token_ids={"ids": ids}, truncate_prompt_tokens=3).prompt_ids) == [97, 98, 99]
    assert list(convert(prompts, token_ids={"ids": [1]}, truncate_prompt_tokens=2**32 - 1).prompt_ids) == [1]


def test_conversion_names_the_kv_cache_where_it_is_the_limit(prompts: PromptReader) -> None:
    small = Limits(64, 8, 256, 16, 2)
    assert convert(prompts, limits=small).max_tokens == 33 - 2
    with pytest.raises(InvalidArgumentError, match="the KV cache allows 33"):
        convert(prompts, limits=small, token_ids={"ids": [1] * 33})


def test_conversion_turns_the_time_left_into_a_deadline(prompts: PromptReader) -> None:
    before = time.time()
    deadline_s = convert(prompts, time_remaining_s=30.0).deadline_s
    assert deadline_s is not None
    # The clock may be set while this runs.
    assert before + 25 < deadline_s < time.time() + 35


def test_conversion_resumes_after_the_received_tokens(prompts: PromptReader) -> None:
    generation = convert(
        prompts,
        token_ids={"ids": [1, 2]},
        resume={"request_id": "abc", "seed": 5, "received_token_ids": [7, 8]},
        stopping={"max_tokens": 10},
    )
    submit = generation.to_submit(1, generation.received_ids, resumes=False, was_accepted=False)
    assert list(memoryview(submit.token_ids).cast("i")) == [1, 2, 7, 8]
    assert (submit.num_prompt_tokens, submit.max_tokens) == (2, 10)
    assert (submit.request_id, submit.sampling.seed) == ("abc", 5)


def test_conversion_reads_long_prompts_in_another_thread(prompts: PromptReader, served: ServedModel) -> None:
    text = "hello " * 5_000
    limits = Limits(100_000, 8, 256, 16, 100_000)
    expected = served.tokenizer.encode(text, add_special_tokens=True)
    assert list(convert(prompts, limits=limits, text=text).prompt_ids) == expected


def test_conversion_tells_the_templates_error(tmp_path: Path) -> None:
    model = read_served_model(write_tiny_model(tmp_path, chat_template="{{ raise_exception('no system') }}"), "tiny")
    reader = PromptReader(model, ThreadPoolExecutor(1), trusts_request_templates=False)
    with pytest.raises(InvalidArgumentError, match="no system") as caught:
        convert(reader, chat={"messages": [{"role": "system"}]})
    assert caught.value.field == "chat"


def test_conversion_refuses_chats_without_template(tmp_path: Path) -> None:
    model = read_served_model(write_tiny_model(tmp_path, chat_template=None), "tiny")
    reader = PromptReader(model, ThreadPoolExecutor(1), trusts_request_templates=False)
    with pytest.raises(NoChatTemplateError):
        convert(reader, chat={"messages": [{"role": "user"}]})


def test_conversion_runs_a_callers_template_only_where_it_is_trusted(served: ServedModel) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}], "template": "{{ messages[0].content }}"}
    with pytest.raises(TemplateRefusedError):
        convert(PromptReader(served, ThreadPoolExecutor(1), trusts_request_templates=False), chat=chat)
    trusting = PromptReader(served, ThreadPoolExecutor(1), trusts_request_templates=True)
    assert list(convert(trusting, chat=chat).prompt_ids) == served.tokenizer.encode("hello", add_special_tokens=False)
    with pytest.raises(InvalidArgumentError, match="line 1"):
        convert(trusting, chat={**chat, "template": "{% if %}"})


def test_conversion_gives_templates_every_part_of_a_chat(served: ServedModel) -> None:
    trusting = PromptReader(served, ThreadPoolExecutor(1), trusts_request_templates=True)
    chat = {
        "messages": [
            {"role": "assistant", "content": "c", "name": "n", "tool_call_id": "t", "tool_calls": [{"id": "x"}]},
            {"role": "user", "content": "c"},
        ],
        "tools": [{"name": "f"}],
        "template_args": {"flag": True},
        "template": "{{ messages | tojson }}{{ tools | tojson }}{{ flag }}{{ eos_token }}",
    }
    ids = list(convert(trusting, limits=Limits(4096, 8, 256, 16, 1000), chat=chat).prompt_ids)
    assert served.tokenizer.decode(ids, skip_special_tokens=False) == (
        '[{"role": "assistant", "content": "c", "name": "n", "tool_call_id": "t", "tool_calls": [{"id": "x"}]}, '
        '{"role": "user", "content": "c"}][{"name": "f"}]True<|eos|>'
    )


@pytest.mark.parametrize(
    ("max_requests", "max_tokens", "n", "problem"),
    [
        (4, 1000, 5, "is 5, must be at most the 4 requests that may wait"),
        (4, 1000, 4, None),
        (4, 8, 2, "with 6 prompt tokens each more than the 8 tokens that may wait"),
        (4, 5, 1, None),
        (4, 12, 2, None),
    ],
)
def test_more_choices_than_can_ever_wait_are_refused_for_good(
    prompts: PromptReader, max_requests: int, max_tokens: int, n: int, problem: str | None
) -> None:
    limits = Limits(64, 8, 256, 16, 1000, max_requests, max_tokens)
    request = generate_pb2.GenerateRequest(token_ids={"ids": [1] * 6}, sampling={"n": n})
    converted = to_generations(request, prompts=prompts, model=MODEL, limits=limits, time_remaining_s=None)
    if problem is None:
        assert len(asyncio.run(converted)) == n
        return
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        asyncio.run(converted)
    assert caught.value.field == "sampling.n"
