"""Are JSON log lines what a machine can take: an object each, with what the record named in fields of their own?"""

import json
import logging
from datetime import datetime

import pytest

from pagewire.ipc.logs import JsonFormatter, from_line


def line_of(message: object, *args: object, exc_info: object = None) -> dict[str, object]:
    record = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, message, args, exc_info)  # type: ignore[arg-type]
    line = JsonFormatter("worker-1").format(record)
    assert "\n" not in line
    entry = from_line(line)
    assert entry is not None
    return entry


def test_a_line_says_when_who_and_what() -> None:
    entry = line_of("request refused request_id=%s num_tokens=%d reason=%s", "r-1", 7, None)
    assert entry["message"] == "request refused request_id=r-1 num_tokens=7 reason=None"
    assert (entry["level"], entry["logger"], entry["process"]) == ("warning", "a.b", "worker-1")
    assert (entry["request_id"], entry["num_tokens"], entry["reason"]) == ("r-1", 7, None)
    assert datetime.fromisoformat(str(entry["time"])).tzinfo is not None


@pytest.mark.parametrize(
    ("message", "args", "fields"),
    [
        ("100%% of %s x=%.1f", ("all", 1.5), {"x": 1.5}),
        ("x=%5.2f y=%-3d z=%r", (1.0, 2, "a\nb"), {"x": 1.0, "y": 2, "z": "a\nb"}),
        ("x=%*d", (5, 3), {}),
        ("nothing to say", (), {}),
        ("error=%s", (ValueError("no\nway"),), {"error": "no\nway"}),
        ("level=%s message=%s", ("high", "hi"), {}),
    ],
)
def test_only_named_values_become_fields(message: str, args: tuple[object, ...], fields: dict[str, object]) -> None:
    entry = line_of(message, *args)
    for name in ("time", "logger", "process", "pid"):
        del entry[name]
    assert entry.pop("level") == "warning"
    assert entry.pop("message") == message % args
    assert entry == fields


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        entry = line_of("failed", exc_info=(type(error), error, error.__traceback__))
    assert "two\nlines" in str(entry["exception"])


def test_text_of_callers_cannot_end_a_line() -> None:
    entry = line_of("prompt=%s", '"}\n{"level": "error" \x00 \u2028 é')
    assert entry["prompt"] == '"}\n{"level": "error" \x00 \u2028 é'


@pytest.mark.parametrize("line", ["", "text", "{", '{"a": 1} x', "[1]", "1"])
def test_other_lines_are_no_objects(line: str) -> None:
    assert from_line(line) is None


def test_an_object_is_taken_as_it_is() -> None:
    assert from_line(json.dumps({"a": {"b": 1}})) == {"a": {"b": 1}}
