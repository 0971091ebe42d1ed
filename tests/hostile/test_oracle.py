"""Does the suite see what a service does wrong, and are its cases the same in every run?"""

import random
from pathlib import Path

import pytest

from pagewire.v1 import generate_pb2
from tests.hostile.grpc_cases import find_methods
from tests.hostile.http_cases import HttpCases
from tests.hostile.http_sender import Answer, complaints
from tests.hostile.messages import fill
from tests.hostile.mutations import mutate
from tests.hostile.service import HostileService

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(500, JSON, b'{"error": {"message": "x"}}', True), "status 500"),
        (Answer(400, JSON, b"<html>", True), "no JSON"),
        (Answer(400, JSON, b'{"detail": "x"}', True), "without a message"),
        (Answer(200, EVENTS, b'data: {"error": {"code": "internal_error"}}\n\n', True), "a stream fails"),
        (Answer(200, EVENTS, b"data: {}\n\ndata: {", True), "ends within one"),
        (Answer(200, EVENTS, b"data: {}\ndata: {}\n\n"), "an event is"),
    ],
)
def test_a_bad_answer_is_told(answer: Answer, problem: str) -> None:
    assert problem in "; ".join(complaints(answer))


def test_a_good_answer_is_not() -> None:
    assert list(complaints(Answer(400, JSON, b'{"error": {"message": "x"}}', True))) == []
    assert list(complaints(Answer(200, EVENTS, b"id: a\ndata: {}\n\n: ping\n\ndata: [DONE]\n\n", True))) == []


def test_faults_in_a_log_and_ended_processes_are_told(tmp_path: Path) -> None:
    with HostileService(tmp_path) as service:
        before = service.vitals()
        assert service.complaints(before) == []
        (tmp_path / "worker.log").write_text("Traceback (most recent call last):")
        (line,) = service.complaints(before)
        assert line.startswith("worker logged 1 faults")
        service.kill("worker")
        assert service.complaints(before)[0] == "worker has ended"


def test_cases_are_the_same_for_the_same_seed(service: HostileService) -> None:
    methods = find_methods(service.address)
    assert "pagewire.v1.InferenceService.Generate" in {method.name for method in methods}
    for method in methods:
        assert [method.make(random.Random(n)) for n in range(20)] == [method.make(random.Random(n)) for n in range(20)]
    first, second = HttpCases(), HttpCases()
    assert [first.make(random.Random(n)) for n in range(50)] == [second.make(random.Random(n)) for n in range(50)]


def test_messages_hold_extremes_and_damage_changes_them() -> None:
    choice, seen = random.Random(1), set()
    for _ in range(300):
        message = generate_pb2.GenerateRequest()
        fill(message, choice)
        seen.add(message.WhichOneof("prompt"))
        seen |= {message.sampling.temperature, message.priority, message.output.kind}
        data = generate_pb2.GenerateRequest(text="hello world").SerializeToString()
        assert isinstance(mutate(data, choice, data), bytes)
    assert {"text", "token_ids", "chat", None, float("inf"), 2**31 - 1, -(2**31)} <= seen
