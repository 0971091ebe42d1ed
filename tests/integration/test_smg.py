"""Does smg, a gateway of others, work in front of a whole service? Chats, streams, stop strings, leaving callers."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from pagewire_client import Client, LocalService, SamplingParams
from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S, PATIENT
from tests.fakes.smg_process import SmgProcess, read_events

pytestmark = pytest.mark.model

SMALL = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "info"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32)


@pytest.fixture(scope="module")
def address(demo_model: Path) -> Iterator[str]:
    listen = f"127.0.0.1:{free_port()}"
    with LocalService(str(demo_model), listen=[listen], flags=SMALL) as running:
        running.wait_until_ready(PATIENCE_S)
        yield listen


@pytest.fixture(scope="module")
def smg(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmgProcess]:
    with SmgProcess(address, tmp_path_factory.mktemp("smg") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def own(address: str) -> Any:
    """What our own client gets for the question."""
    with Client(address, retry=PATIENT) as client:
        client.wait_until_ready(PATIENCE_S)
        yield client.generate(QUESTION, GREEDY)


@pytest.fixture(scope="module")
def model(address: str) -> str:
    with Client(address, retry=PATIENT) as client:
        return client.list_models()[0].name


def load(address: str) -> vllm_engine_pb2.SchedulerLoad:
    with grpc.insecure_channel(address) as channel:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        return stub.GetLoads(vllm_engine_pb2.GetLoadsRequest(), timeout=PATIENCE_S).loads[0]


def wait_for_load(address: str, num_running: int) -> vllm_engine_pb2.SchedulerLoad:
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := load(address)).num_total_reqs != num_running:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.02)
    return found


def chat(smg: SmgProcess, model: str, **fields: Any) -> Any:
    options = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 32, **fields}
    return smg.post("/v1/chat/completions", **options)


def test_a_chat_gives_what_our_own_client_gets(smg: SmgProcess, model: str, own: Any) -> None:
    answer = json.load(chat(smg, model))
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == own.text
    assert choice["finish_reason"] == "stop"
    # The prompt was rendered and tokenized by smg, with the tokenizer and the template that it got from us.
    assert answer["usage"]["prompt_tokens"] == own.usage.num_prompt_tokens
    assert answer["usage"]["completion_tokens"] == own.usage.num_output_tokens


def test_a_streamed_chat_gives_the_same(smg: SmgProcess, model: str, own: Any) -> None:
    events = read_events(chat(smg, model, stream=True, stream_options={"include_usage": True}))
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == own.text
    assert choices[-1]["finish_reason"] == "stop"
    usage = events[-1]["usage"]
    assert usage["completion_tokens"] == own.usage.num_output_tokens
    # Our own client asked the same before, so all full blocks of the prompt were there.
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stop_string_ends_the_answer(smg: SmgProcess, model: str, own: Any, is_streamed: bool) -> None:
    response = chat(smg, model, stop=["Paris"], stream=is_streamed)
    if is_streamed:
        choices = [choice for event in read_events(response) for choice in event["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
    else:
        choices = json.load(response)["choices"]
        text = choices[0]["message"]["content"]
    assert text.rstrip() == own.text.partition("Paris")[0].rstrip()
    assert (choices[-1]["finish_reason"], choices[-1]["matched_stop"]) == ("stop", "Paris")


def test_several_choices_have_log_probabilities(smg: SmgProcess, model: str) -> None:
    answer = json.load(chat(smg, model, n=2, temperature=1.0, max_tokens=4, logprobs=True, top_logprobs=2))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        entries = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries).startswith(choice["message"]["content"])
        assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)


def test_a_caller_who_leaves_frees_the_blocks(smg: SmgProcess, model: str, address: str) -> None:
    wait_for_load(address, 0)
    response = chat(smg, model, stream=True, max_tokens=8000, ignore_eos=True)
    assert response.readline().startswith(b"data: ")
    assert wait_for_load(address, 1).num_used_tokens > 0
    response.close()
    assert wait_for_load(address, 0).num_used_tokens == 0


def test_smg_routes_by_our_kv_events(smg: SmgProcess, model: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while "Event-driven routing" not in smg.log_text():
        assert time.monotonic() < deadline_s, smg.log_text()
        json.load(chat(smg, model, max_tokens=1))
