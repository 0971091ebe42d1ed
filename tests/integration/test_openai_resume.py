"""Does a stream of events go on where it was cut, at any gateway, from the id of the last event alone?"""

from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from pagewire.ipc.requests import Abort, StepTokens, Submit
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.openai_gateway import JSON_HEADERS, Events, RawStream, http_gateway, post
from tests.fakes.tiny_model import byte_level_ids

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Half characters, a stop text that almost comes, and one that does.
TOKEN_IDS = byte_level_ids("hé 中 STO 🎉 STOP".encode())
STOPPING: dict[str, Any] = {"stream": True, "stop": "STOP", "max_tokens": 100}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
BODIES = [
    (COMPLETIONS, {**STOPPING, "prompt": "ab", "logprobs": 0, "return_token_ids": True}),
    (CHAT, {**STOPPING, **USAGE, "messages": [{"role": "user", "content": "x"}], "logprobs": True}),
]


@pytest.fixture(scope="module")
def ports(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Those of two gateways of one scheduler."""
    folder = tmp_path_factory.mktemp("resume")
    with http_gateway(scheduler, folder / "a") as (_, one), http_gateway(scheduler, folder / "b") as (_, two):
        yield [one, two]


def play(scheduler: FakeScheduler, submit: Submit, token_ids: list[int]) -> None:
    """Tokens in one message, with their log probabilities if these are wanted."""
    records = b"".join(array("i", [1]).tobytes() + array("f", [-token_id / 7]).tobytes() for token_id in token_ids)
    logprobs = {submit.stream_id: records} if submit.sampling.num_logprobs == 0 else {}
    stream_ids = array("I", [submit.stream_id] * len(token_ids)).tobytes()
    # The fake tells every gateway, and those who do not know the stream drop it.
    scheduler.send(StepTokens(stream_ids, array("i", token_ids).tobytes(), [], logprobs=logprobs))


def read_all(scheduler: FakeScheduler, stream: RawStream, submit: Submit, num_sent: int, num_heads: int) -> Events:
    """All events, where each token comes after the event of the one before was read."""
    play(scheduler, submit, TOKEN_IDS[:num_sent])
    stream.read(num_heads)
    for token_id in TOKEN_IDS[num_sent:]:
        play(scheduler, submit, [token_id])
        stream.read(1)
    events = stream.read()
    assert scheduler.take(Abort).stream_ids == (submit.stream_id,)
    return events


@pytest.mark.parametrize(("path", "body"), BODIES, ids=["completion", "chat"])
def test_the_rest_is_the_same_to_the_byte_from_wherever_it_was_cut(
    ports: list[int], scheduler: FakeScheduler, path: str, body: dict[str, Any]
) -> None:
    whole_stream = RawStream(ports[0], path, body)
    first = scheduler.take(Submit)
    whole = read_all(scheduler, whole_stream, first, 0, num_heads=1)
    assert (whole.text, whole.is_done) == ("hé 中 STO 🎉 ", True)
    assert first.resumes is False
    if path == COMPLETIONS:
        assert whole.data[-2]["choices"][0]["logprobs"]["text_offset"] == [len("hé 中 STO 🎉 STO")]
    for number, event_id in enumerate(whole.ids):
        num_sent = min(number, len(TOKEN_IDS))
        stream = RawStream(ports[number % 2], path, body, event_id)
        if number < len(whole.ids) - 1:
            submit = scheduler.take(Submit)
            assert (submit.request_id, submit.sampling, submit.token_ids) == (
                first.request_id,
                first.sampling,
                first.token_ids,
            )
            assert submit.resumes
            rest = read_all(scheduler, stream, submit, num_sent, num_heads=0)
        else:
            rest = stream.read()
        assert rest.raw == whole.raw[find_end(whole.raw, event_id) :]


def find_end(raw: bytes, event_id: str) -> int:
    """Where the event of this id ends."""
    return raw.index(b"\n\n", raw.index(f"id: {event_id}\n".encode())) + 2


def test_choices_go_on_each_from_its_own_place(ports: list[int], scheduler: FakeScheduler) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "stream": True, "max_tokens": 3}
    stream = RawStream(ports[0], COMPLETIONS, body)
    submits = sorted((scheduler.take(Submit) for _ in range(4)), key=lambda submit: submit.request_id)
    texts = [b"abc", b"def", b"ghi", b"jkl"]
    for number, text in enumerate(texts):
        # The first has nothing yet, the last all but its end.
        for token_id in byte_level_ids(text[:number]):
            play(scheduler, submits[number], [token_id])
            stream.read(1)
    cut = stream.events
    stream.connection.close()
    gone: set[int] = set()
    while gone != {one.stream_id for one in submits}:
        gone |= set(scheduler.take(Abort).stream_ids)
    rest_stream = RawStream(ports[1], COMPLETIONS, body, cut.ids[-1])
    again = sorted((scheduler.take(Submit) for _ in range(4)), key=lambda submit: submit.request_id)
    assert [one.sampling.seed for one in again] == [one.sampling.seed for one in submits]
    for number, text in enumerate(texts):
        scheduler.send_stream(again[number].stream_id, byte_level_ids(text), stop_at_length(again[number].stream_id))
    rest = rest_stream.read()
    for number, text in enumerate(texts):
        assert text_of(cut, number) + text_of(rest, number) == text.decode()
        assert text_of(cut, number) == text[:number].decode()


def text_of(events: Events, number: int) -> str:
    choices = [choice for chunk in events.data for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == number)


def test_tokens_that_come_out_differently_end_the_stream(ports: list[int], scheduler: FakeScheduler) -> None:
    path, body = BODIES[1]
    stream = RawStream(ports[0], path, body)
    submit = scheduler.take(Submit)
    play(scheduler, submit, TOKEN_IDS[:3])
    event_id = stream.read(2).ids[-1]
    stream.connection.close()
    scheduler.take(Abort)
    again = RawStream(ports[0], path, body, event_id)
    play(scheduler, scheduler.take(Submit), [*TOKEN_IDS[:2], *TOKEN_IDS[:3]])
    events = again.read()
    assert [chunk["error"]["code"] for chunk in events.data] == ["stream_changed"]
    assert not events.is_done
    scheduler.take(Abort)


@pytest.mark.parametrize(
    ("event_id", "changes", "problem"),
    [
        ("nonsense", {}, "is no id of an event"),
        ("a:1:1:0:0-0-00000000", {"n": 2}, "has 2: send the same body"),
        (f"a:{2**64}:1:0:0-0-00000000", {}, "is no id of an event"),
        ("a:1:1:0:101-0-00000000", {}, "has more ids than the 100 of max_tokens"),
        ("a:1:1:0:1-0-00000000", {"seed": 2}, "differs from resume.seed"),
        ("a:1:1:0:0-0-00000000", {"stream": False}, "is for streams"),
    ],
)
def test_an_id_that_does_not_fit_is_refused(
    ports: list[int], event_id: str, changes: dict[str, Any], problem: str
) -> None:
    body = {"prompt": "a", "stream": True, "max_tokens": 100, **changes}
    status, answer = post(ports[0], COMPLETIONS, body, {**JSON_HEADERS, "Last-Event-ID": event_id})
    assert status == 400
    assert problem in answer["error"]["message"]
    assert answer["error"]["param"] == ("seed" if "seed" in changes else "Last-Event-ID")


def test_a_slow_reader_gets_all_and_a_quiet_stream_lives(ports: list[int], scheduler: FakeScheduler) -> None:
    """Tokens pool at the gateway while nobody reads: they come in few events then."""
    num_tokens = 400
    body = {"prompt": "a", "stream": True, "max_tokens": num_tokens, "cache_salt": "x"}
    stream = RawStream(ports[0], COMPLETIONS, body)
    submit = scheduler.take(Submit)
    letters = byte_level_ids(b"x")
    scheduler.send_stream(submit.stream_id, letters * num_tokens, stop_at_length(submit.stream_id))
    assert stream.read().text == "x" * num_tokens
