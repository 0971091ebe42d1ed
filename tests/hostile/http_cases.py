"""Which HTTP requests does the fuzz make? Bodies from the schemas of the served ones, damaged bodies, damaged heads."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scheduler_service.gateway.openai.bodies import ChatCompletionBody, CompletionBody
from scheduler_service.gateway.openai.parsing import NOT_SERVED
from tests.hostile import corpus
from tests.hostile.messages import random_text
from tests.hostile.mutations import mutate

_SCHEMAS = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatCompletionBody}
_PATHS = (
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/%2e%2e/x",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/embeddings",
    "/x",
    "*",
    "",
)
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "CONNECT", "TRACE", "get", "PRI", "X" * 300)
_NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    7,
    20,
    128,
    129,
    2**31,
    2**32,
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    0.5,
    1e308,
)
_EVENT_IDS = (
    "mine:5:1700000000:1:3-3-0000abcd",
    "mine:18446744073709551616:1:1:1-1-00000000",
    "mine:5:1700000000:999999:9999999999-0-ffffffff",
    *(":::::", "mine:5:1:1:", "-1", "\u00e9", "0", "mine:5:1:1:" + ",".join(["1-1-00000000"] * 200)),
)
# JSON as no encoder writes it: put in place of some value.
_ODD_JSON = (
    *("NaN", "-Infinity", "1e999", "-0", "01", "9" * 5000, '"\\ud800"', '"\\u0000"', '"\ud83d"', "'x'", "/**/1"),
    *("[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, '{"a":1,"a":[2]}', "tru", ""),
)
_MARK = "\u2603place\u2603"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """Bytes to send on a new connection; `is_whole`: an answer must come."""

    data: bytes
    is_head: bool
    is_whole: bool
    give_up_after_s: float


class HttpCases:
    """Makes requests."""

    def __init__(self) -> None:
        self._schemas = {path: kind.model_json_schema() for path, kind in _SCHEMAS.items()}

    def make(self, choice: random.Random) -> HttpRequest:
        """Any request."""
        path = choice.choice(list(corpus.BODIES))
        body = choice.choice(corpus.BODIES[path])
        give_up_after_s = choice.choice((0.0, 0.01, 0.05, 1.0, 1.0, 1.0))
        match choice.choices(("fields", "odd", "bytes", "head", "valid"), (6, 2, 3, 3, 1))[0]:
            case "fields":
                body = self._changed(path, body, choice)
                data = json.dumps(body, ensure_ascii=choice.random() < 0.5).encode("utf-8", "surrogatepass")
            case "odd":
                data = _with_odd_value(body, choice)
            case "bytes":
                data = mutate(
                    json.dumps(body).encode(), choice, json.dumps(corpus.BODIES["/v1/completions"][2]).encode()
                )
            case "head":
                return _damaged_head(json.dumps(body).encode(), path, choice)
            case _:
                data = json.dumps(body).encode()
        head = _head("POST", path, {"content-type": "application/json", **_headers(choice)}, len(data))
        return HttpRequest(head + data, False, True, give_up_after_s)

    def _changed(self, path: str, body: dict[str, Any], choice: random.Random) -> dict[str, Any]:
        body = dict(body)
        schema = self._schemas.get(path, {"properties": {}})
        names = [*schema["properties"], *NOT_SERVED, "unheard_of"]
        for name in choice.sample(names, choice.randint(1, 4)):
            described = schema["properties"].get(name, {})
            body[name] = _value(described, schema, choice) if choice.random() < 0.7 else _any_value(choice)
        return body


def _value(described: Any, schema: Mapping[str, Any], choice: random.Random, depth: int = 0) -> Any:
    """A value of the kind that a schema describes, not always within its limits."""
    if not isinstance(described, dict):  # true: anything
        return _any_value(choice, depth)
    if "$ref" in described:
        described = schema["$defs"][described["$ref"].rpartition("/")[2]]
    if "anyOf" in described:
        described = choice.choice(described["anyOf"])
    match described.get("type"):
        case "boolean":
            return choice.random() < 0.5
        case "integer" | "number":
            limits = [described[name] for name in ("minimum", "maximum", "exclusiveMaximum") if name in described]
            near = [limit + step for limit in limits for step in (-1, 0, 1)]
            return choice.choice([*near, *_NUMBERS[:6]])
        case "string":
            return random_text(choice)
        case "array" if depth < 4:
            inner = described.get("items", {})
            return [_value(inner, schema, choice, depth + 1) for _ in range(choice.choice((0, 1, 2, 17)))]
        case "object" if depth < 4:
            fields = described.get("properties", {"7": described.get("additionalProperties")})
            chosen = choice.sample(list(fields), choice.randint(0, len(fields)))
            return {name: _value(fields[name], schema, choice, depth + 1) for name in chosen}
        case _:
            return _any_value(choice, depth)


def _any_value(choice: random.Random, depth: int = 0) -> Any:
    kinds = ("number", "text", "null", "bool", *(("list", "object") if depth < 4 else ()))
    match choice.choice(kinds):
        case "number":
            return choice.choice(_NUMBERS)
        case "text":
            return random_text(choice)
        case "null":
            return None
        case "bool":
            return choice.random() < 0.5
        case "list":
            return [_any_value(choice, depth + 1) for _ in range(choice.choice((0, 1, 3)))]
        case _:
            return {random_text(choice)[:9]: _any_value(choice, depth + 1) for _ in range(choice.choice((0, 1, 3)))}


def _with_odd_value(body: dict[str, Any], choice: random.Random) -> bytes:
    body = {**body, choice.choice(list(body)): _MARK}
    text = json.dumps(body, ensure_ascii=False).replace(f'"{_MARK}"', choice.choice(_ODD_JSON))
    start = choice.choice(("", "", "\ufeff", " " * 3000, "\x1e"))
    return (start + text).encode("utf-8", "surrogatepass")


def _headers(choice: random.Random) -> dict[str, str]:
    if choice.random() < 0.6:
        return {}
    named: list[tuple[str, str]] = [
        ("last-event-id", choice.choice(_EVENT_IDS)),
        ("x-request-id", random_text(choice)[:100]),
        ("authorization", "Bearer " + random_text(choice)[:100]),
        ("content-encoding", "gzip"),
        ("content-type", choice.choice(("text/plain", "application/json; charset=utf-16", ""))),
        ("accept", random_text(choice)[:100]),
        ("expect", "100-continue"),
        ("traceparent", "00-0-0-0"),
    ]
    return {name: value.translate({0: None, 13: None, 10: None}) for name, value in choice.sample(named, 2)}


def _head(method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {length}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")


def _damaged_head(body: bytes, path: str, choice: random.Random) -> HttpRequest:
    """Another method or path, or a head whose bytes are damaged, of which nobody knows whether it is whole."""
    if choice.random() < 0.3:
        method = choice.choice(_METHODS)
        head = _head(method, choice.choice(_PATHS), _headers(choice), 0)
        return HttpRequest(head, method == "HEAD", False, 1.0)
    head = _head("POST", path, {"content-type": "application/json", **_headers(choice)}, len(body))
    pieces = (
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\nContent-Length: -1\r\n 5\r\n\r\n0\r\n\r\nGET / HTTP/1.1"
    )
    return HttpRequest(mutate(head, choice, pieces) + body, False, False, 0.3)
