"""Do smg's parsers find tool calls and reasoning in what we stream? The scheduler says what the model answers."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from pagewire.ipc.cache_events import WatchCache
from pagewire.ipc.requests import Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_token
from tests.fakes.gateway_process import MODEL_NAME, GatewayProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.smg_process import SmgProcess, read_events
from tests.fakes.tiny_model import byte_level_ids
from tests.integration.conftest import EOS_ID

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def smg(
    gateway: GatewayProcess, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SmgProcess]:
    flags = ("--tool-call-parser", "qwen", "--reasoning-parser", "qwen3")
    with SmgProcess(gateway.address, tmp_path_factory.mktemp("smg") / "log", *flags) as running:
        assert scheduler.take(WatchCache).wanted
        yield running


@pytest.fixture
def ask(smg: SmgProcess, scheduler: FakeScheduler) -> Iterator[Callable[..., Any]]:
    """Ask smg something, to which the model answers with this text."""
    executor = ThreadPoolExecutor(1)

    def asked(answer: str, **fields: Any) -> Any:
        options = {"model": MODEL_NAME, "messages": QUESTION, **fields}
        call: Future[Any] = executor.submit(smg.post, "/v1/chat/completions", **options)
        submit = scheduler.take(Submit)
        token_ids = [*byte_level_ids(answer.encode()), EOS_ID]
        scheduler.send_stream(submit.stream_id, token_ids, stop_at_token(submit.stream_id, EOS_ID))
        response = call.result(PATIENCE_S)
        return read_events(response) if fields.get("stream") else json.load(response)

    yield asked
    executor.shutdown(wait=False)


def test_the_tokenizer_comes_from_us_and_nobody_else(smg: SmgProcess) -> None:
    assert "Fetching tokenizer from worker" in smg.log_text()
    assert "HuggingFace" not in smg.log_text()


def test_tool_calls_are_found(ask: Callable[..., Any]) -> None:
    (choice,) = ask(CALL, tools=[TOOL])["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Paris"})
    assert choice["finish_reason"] == "tool_calls"


def test_tool_calls_are_found_in_a_stream(ask: Callable[..., Any]) -> None:
    events = ask(CALL, tools=[TOOL], stream=True)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    functions = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    assert "".join(function.get("name") or "" for function in functions) == "get_weather"
    arguments = "".join(function.get("arguments") or "" for function in functions)
    assert json.loads(arguments) == {"city": "Paris"}


def test_reasoning_is_told_apart(ask: Callable[..., Any]) -> None:
    (choice,) = ask("<think>\nlet me see\n</think>\n\nhello")["choices"]
    assert choice["message"]["reasoning_content"].strip() == "let me see"
    assert choice["message"]["content"].strip() == "hello"
