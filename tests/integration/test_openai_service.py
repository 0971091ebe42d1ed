"""OpenAI's clients over a whole service with the demo model: the same tokens as over gRPC, whoever is killed."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from pagewire_client import Client, LocalService, SamplingParams
from tests.fakes.free_port import free_port
from tests.fakes.mixed_streams import GOLDEN
from tests.fakes.openai_gateway import RawStream
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import child, children

pytestmark = pytest.mark.model

FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning", "--gateways", "2"]
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "openai.md"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def service(demo_model):
    # Where a gateway listens that starts again.
    port = free_port(2)
    with LocalService(str(demo_model), flags=[*FLAGS, "--http", f"127.0.0.1:{port}"]) as running:
        running.wait_until_ready(PATIENCE_S)
        assert running.http_urls == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
        yield running


@pytest.fixture
def client(service):
    with openai.OpenAI(base_url=f"{service.http_urls[0]}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def grpc_client(service):
    with Client(service.addresses[0]) as one:
        yield one


@pytest.fixture
def model(client):
    return client.models.list().data[0].id


def test_golden_tokens_come_over_http(client, model):
    cases = sorted(GOLDEN, key=lambda case: len(case["prompt_ids"]))[:4]
    prompts = [case["prompt_ids"] for case in cases]
    extra = {"ignore_eos": True, "return_token_ids": True}
    answer = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=64, extra_body=extra)
    assert [choice.token_ids for choice in answer.choices] == [case["output_ids"] for case in cases]
    assert [choice.prompt_token_ids for choice in answer.choices] == prompts
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


def test_a_question_is_answered_whole_and_in_chunks(client, model):
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_choices_seeds_and_log_probabilities_are_those_of_grpc(client, model, grpc_client):
    prompt = "The sea is"
    params = SamplingParams(seed=11, n=3, max_tokens=12, logprobs=2, temperature=0.8)
    expected = grpc_client.generate(prompt, params)

    async def run():
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="none") as one:
            kwargs = {"model": model, "prompt": prompt, "seed": 11, "n": 3, "max_tokens": 12, "temperature": 0.8}
            whole = asyncio.create_task(one.completions.create(**kwargs, logprobs=2))
            stream = await one.completions.create(**kwargs, logprobs=2, stream=True)
            return await whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(run())
    for choice, wanted in zip(whole.choices, expected.choices, strict=True):
        assert choice.text == wanted.text
        assert choice.logprobs.token_logprobs == pytest.approx([entry.logprob for entry in wanted.logprobs])
        assert "".join(choice.logprobs.tokens).startswith(choice.text)
        assert all(len(top) in (2, 3) for top in choice.logprobs.top_logprobs)
        places = zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
        assert all(choice.text[place:].startswith(token) for place, token in places)
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset]
        assert offsets == choice.logprobs.text_offset


def test_an_echo_comes_with_the_prompt_s_log_probabilities(client, model, grpc_client):
    prompt = "The sea is blue"
    expected = grpc_client.generate(prompt, SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=3))
    request = {"model": model, "temperature": 0, "max_tokens": 4, "logprobs": 1, "echo": True, "n": 2}
    extra = {"prompt_logprobs": 3, "return_token_ids": True}
    answer = client.completions.create(**request, prompt=[prompt, "One, two,"], extra_body=extra)
    for choice in answer.choices[:2]:
        assert choice.text == prompt + expected.text
        logprobs, num_prompt_tokens = choice.logprobs, len(choice.prompt_token_ids)
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        assert "".join(logprobs.tokens) == choice.text
        assert all(
            choice.text[place:].startswith(token)
            for place, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)
        )
        assert all(len(top) in (1, 2) for top in logprobs.top_logprobs[1:])
        told = choice.prompt_logprobs
        assert (told[0], len(told)) == (None, num_prompt_tokens)
        for token_id, entries, logprob in zip(
            choice.prompt_token_ids[1:], told[1:], logprobs.token_logprobs[1:num_prompt_tokens], strict=True
        ):
            assert entries[str(token_id)]["logprob"] == logprob
            assert len(entries) in (3, 4)
    assert answer.choices[2].text.startswith("One, two,")


def test_log_probabilities_of_a_chat_have_bytes(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.choices[0].message.content
    for entry in content:
        assert entry.top_logprobs[0].token == entry.token
        assert len(entry.top_logprobs) == 3


def test_a_stop_text_ends_a_stream(client, model):
    whole = client.completions.create(model=model, prompt="One, two, three,", temperature=0, max_tokens=32)
    stop = whole.choices[0].text[10:13]
    chunks = list(
        client.completions.create(
            model=model, prompt="One, two, three,", temperature=0, max_tokens=32, stop=[stop], stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text.partition(stop)[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("is_stream", [True, False])
def test_blocks_of_whoever_leaves_are_freed(client, model, grpc_client, is_stream):
    all_blocks = grpc_client.server_info().limits.num_blocks
    impatient = client.with_options(timeout=openai.Timeout(PATIENCE_S, read=1.0))
    request = {"model": model, "prompt": GOLDEN[0]["prompt_ids"], "max_tokens": 1900, "n": 2, "stream": is_stream}
    if is_stream:
        stream = impatient.completions.create(**request, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            impatient.completions.create(**request, extra_body={"ignore_eos": True})
    while grpc_client.server_info().load.num_free_blocks != all_blocks:
        time.sleep(0.05)
    # 1,900 steps would have taken far longer than nobody had to wait.
    assert grpc_client.server_info().load.num_running == 0


def test_a_stream_goes_on_at_another_gateway_when_its_own_is_killed(service):
    """The sequence lives; then it is run again, because the scheduler died too. All pieces make the whole."""
    ports = [int(url.rpartition(":")[2]) for url in service.http_urls]
    body = {
        "prompt": GOLDEN[0]["prompt_ids"],
        "max_tokens": 60,
        "temperature": 0.8,
        "seed": 3,
        "n": 2,
        "logprobs": 1,
        "stream": True,
        "ignore_eos": True,
    }
    whole = RawStream(ports[0], COMPLETIONS, body).read()
    assert whole.is_done
    # Held open, so that its gateway does not see it leave.
    first = RawStream(ports[0], COMPLETIONS, body)
    cut = first.read(10)
    children(service, "gateway-0.sock")[0].kill()
    second = RawStream(ports[1], COMPLETIONS, body, cut.ids[-1])
    middle = second.read(10)
    child(service, "scheduler_service.core").kill()
    rest = RawStream(ports[1], COMPLETIONS, body, middle.ids[-1]).read()
    assert rest.is_done
    for index in range(2):
        wanted = choice_of([whole], index)
        assert choice_of([cut, middle, rest], index) == wanted
        assert len(wanted[1]) == 60


def test_a_plain_http_client_resumes_as_the_documentation_says(service):
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)[1], names)
    base_urls = [f"{url}/v1" for url in service.http_urls]
    body = {"prompt": GOLDEN[1]["prompt_ids"], "max_tokens": 64, "temperature": 0, "stream": True}
    extra = {"ignore_eos": True, "return_token_ids": True}
    token_ids: list[int] = []
    for number, chunk in enumerate(names["stream_chunks"](base_urls, body | extra)):
        token_ids += chunk["choices"][0].get("token_ids", ())
        if number in (5, 10):
            for gateway in children(service, "scheduler_service.gateway"):
                gateway.kill()
    assert token_ids == GOLDEN[1]["output_ids"]


def choice_of(pieces, index):
    """Text and log probabilities of a choice, over all pieces, and how it ended."""
    choices = [choice for events in pieces for chunk in events.data for choice in chunk["choices"]]
    mine = [choice for choice in choices if choice["index"] == index]
    logprobs = [choice["logprobs"] for choice in mine if choice["logprobs"]]
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    tokens = [entry for part in logprobs for entry in zip(*(part[name] for name in names), strict=True)]
    ends = [choice["finish_reason"] for choice in mine if choice["finish_reason"]]
    return "".join(choice["text"] for choice in mine), tokens, ends
