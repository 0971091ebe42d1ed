"""What do callers of OpenAI's API get who send what cannot be served? An error that names the parameter."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pagewire.ipc.requests import Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.openai_gateway import http_gateway, post
from tests.fakes.patience import PATIENCE_S
from tests.fakes.tiny_model import byte_level_ids

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MAX_BYTES = 100_000
USER = {"role": "user", "content": "x"}


@pytest.fixture(scope="module")
def port(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    flags = ("--max-message-bytes", str(MAX_BYTES))
    with http_gateway(scheduler, tmp_path_factory.mktemp("bad"), *flags) as (process, port):
        yield port
        assert process.process.poll() is None
        assert "Traceback" not in process.log_text()


@pytest.fixture(autouse=True)
def _no_request_reaches_the_scheduler(port: int, scheduler: FakeScheduler) -> Iterator[None]:
    yield
    assert scheduler.take_all() == []


def check(answer: tuple[int, Any], status: int, param: str | None, problem: str) -> None:
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert problem in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("changes", "param", "problem"),
    [
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": ""}, "prompt", "is an empty prompt"),
        ({"prompt": []}, "prompt", "has 0 prompts"),
        ({"prompt": [[]]}, "prompt", "must be a text"),
        ({"prompt": [1, "a"]}, "prompt", "must be a text"),
        ({"prompt": [-1]}, "prompt", "must be a text"),
        ({"prompt": [True]}, "prompt", "must be a text"),
        ({"prompt": [1, 10**6]}, "prompt[1]", "vocabulary"),
        ({"prompt": "a" * 600}, "prompt", "leaves no room"),
        ({"prompt": ["a"] * 1025}, "prompt", "1 to 1024"),
        ({"prompt": ["a"] * 100, "n": 20}, "n", "more than 1024 together"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10**9}, "n", "less than or equal to 128"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"best_of": 2}, "best_of", "must be n"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 10**6}, "max_tokens", "max_model_len"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"temperature": 101}, "temperature", "must be 0 to 100"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"min_p": 2}, "min_p", "must be 0 to 1"),
        ({"presence_penalty": 3}, "presence_penalty", "must be -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must be 0.01 to 100"),
        ({"logit_bias": {"1": 1e300}}, "logit_bias[1]", "must be -100 to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias[0]", "vocabulary"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stop": [""]}, "stop[0]", "1 to 1024"),
        ({"stop": ["a"] * 17}, "stop", "may have 16"),
        ({"stop": 1}, "stop", "valid"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids[0]", "vocabulary"),
        ({"min_tokens": 17}, "min_tokens", "at most the 16"),
        ({"bad_words": [""]}, "bad_words[0]", "1 to 1024"),
        ({"priority": 1001}, "priority", "-1000 to 1000"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "no such parameter"),
        ({"temperatur": 1}, "temperatur", "no such parameter"),
        ({"echo": True, "stream": True}, "echo", "not served in streams yet"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "not served in streams yet"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
        ({"suffix": "b"}, "suffix", "not served yet"),
        ({"guided_json": {}}, "guided_json", "not served yet"),
        ({"messages": [USER]}, "messages", "no such parameter"),
    ],
)
def test_a_completion_that_cannot_be_is_refused(port: int, changes: dict[str, Any], param: str, problem: str) -> None:
    check(post(port, COMPLETIONS, {"prompt": "a", **changes}), 400, param, problem)


@pytest.mark.parametrize(
    ("changes", "param", "problem"),
    [
        ({"messages": None}, "messages", "is missing"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "x"}, "messages", "valid list"),
        ({"messages": ["x"]}, "messages[0]", "valid dictionary"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
        ({"messages": [USER, {**USER, "role": "tool", "tool_call_id": "1"}]}, "messages[1].role", "not served yet"),
        ({"messages": [{**USER, "role": "robot"}]}, "messages[0].role", "must be one of system"),
        ({"messages": [{**USER, "mood": "x"}]}, "messages[0].mood", "no such parameter"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls", "not served yet"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "messages[0].content", "only text is served"),
        ({"messages": [{**USER, "content": [{"type": "text"}]}]}, "messages[0].content", "is not {type, text}"),
        ({"messages": [{**USER, "content": []}]}, "messages[0].content", "must be a text"),
        ({"echo": True}, "echo", "not served yet"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "not served yet"),
        ({"tools": [{"type": "function"}]}, "tools", "not served yet"),
        ({"tool_choice": "auto"}, "tool_choice", "not served yet"),
        ({"functions": [{}]}, "functions", "not served yet"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not served yet"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": 2}, "logprobs", "valid boolean"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differs"),
        ({"max_completion_tokens": 0}, "max_tokens", "at least 1"),
        ({"continue_final_message": True}, "add_generation_prompt", "excludes"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "set by the server"),
        ({"prompt": "x"}, "prompt", "no such parameter"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(port: int, changes: dict[str, Any], param: str, problem: str) -> None:
    check(post(port, CHAT, {"messages": [USER], **changes}), 400, param, problem)


def test_templates_of_callers_are_forbidden(port: int) -> None:
    status, answer = post(port, CHAT, {"messages": [USER], "chat_template": "{{ 7 * 7 }}"})
    assert (status, answer["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"messages": ' + b"[" * 20_000,
        b'{"chat_template_kwargs": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b"\x00" * 100,
    ],
    ids=repr,
)
def test_bytes_that_are_no_json_are_refused(port: int, path: str, body: bytes) -> None:
    status, answer = post(port, path, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_deep_argument_of_the_template_is_no_harm(port: int) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = {"a": [deep]}
    status, answer = post(port, CHAT, {"messages": [], "chat_template_kwargs": {"x": deep}})
    check((status, answer), 400, "messages", "at least one")


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}],
)
def test_a_body_of_another_type_is_refused(port: int, headers: dict[str, str]) -> None:
    check(post(port, COMPLETIONS, {"prompt": "a"}, headers), 415, None, "send plain JSON")


@pytest.mark.parametrize("num_bytes", [MAX_BYTES + 1, 20 * MAX_BYTES])
def test_a_body_that_is_too_large_is_refused(port: int, num_bytes: int) -> None:
    answer = post(port, COMPLETIONS, b"x" * num_bytes)
    check(answer, 413, None, f"larger than the {MAX_BYTES} bytes")


@pytest.mark.parametrize(
    ("method", "path", "status", "problem"),
    [
        ("GET", COMPLETIONS, 405, "use POST"),
        ("DELETE", "/v1/models/tiny", 405, "use GET, HEAD"),
        ("GET", "/v1/files", 404, "no such path"),
        ("POST", "/v1/completions/", 404, "no such path"),
        ("POST", "/v1/embeddings", 400, "embeddings are not served yet"),
    ],
)
def test_other_paths_and_methods_are_refused(port: int, method: str, path: str, status: int, problem: str) -> None:
    check(post(port, path, {}, method=method), status, None, problem)


def test_another_model_is_not_found(port: int) -> None:
    status, answer = post(port, CHAT, {"model": "gpt", "messages": [USER]})
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (404, "model_not_found", "not_found_error")


def test_a_body_may_come_in_pieces(port: int, scheduler: FakeScheduler) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for byte in body:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        submit = scheduler.take(Submit)
        scheduler.send_stream(submit.stream_id, byte_level_ids(b"b"), stop_at_length(submit.stream_id))
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "b"


def test_whoever_leaves_within_a_body_leaves_nothing(port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"prompt"'.encode())
    assert post(port, "/v1/models", {}, method="GET")[0] == 200
