"""Does a stream of events go on where it was cut, at any gateway, from the id of the last event alone?"""

from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from pagewire.ipc.requests import Abort, Submit
from tests.fakes.fake_scheduler import FakeScheduler
from tests.fakes.openai_gateway import Events, RawStream, http_gateway
from tests.fakes.tiny_model import byte_level_ids

PATH = "/v1/completions"
CHAT = "/v1/chat/completions"
# Half characters, a stop text that almost comes, and one that does.
TEXT = "hé 中文 STO 🎉 end STOP".encode()
BODY: dict[str, Any] = {"prompt": "ab", "stream": True, "stop": "STOP", "logprobs": 0, "max_tokens": 100}
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def ports(scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Two gateways of one scheduler, which knows both."""
    folder = tmp_path_factory.mktemp("resume")
    with http_gateway(scheduler, folder / "a") as (_, one), http_gateway(scheduler, folder / "b") as (_, two):
        yield [one, two]


@pytest.fixture(autouse=True)
def _nothing_is_left(scheduler: FakeScheduler) -> Iterator[None]:
    yield
    assert [message for message in scheduler.take_all() if not isinstance(message, Abort)] == []


def log_probability(token_id: int) -> bytes:
    return array("i", [1]).tobytes() + array("f", [-token_id / 7]).tobytes()


def play(scheduler: FakeScheduler, submit: Submit, token_ids: list[int]) -> None:
    """One token a message, with its log probability if that is wanted."""
    from pagewire.ipc.requests import StepTokens

    for token_id in token_ids:
        logprobs = {submit.stream_id: log_probability(token_id)} if submit.sampling.num_logprobs == 0 else {}
        ids, tokens = array("I", [submit.stream_id]).tobytes(), array("i", [token_id]).tobytes()
        scheduler.send(StepTokens(ids, tokens, [], logprobs=logprobs))


def undisturbed(port: int, scheduler: FakeScheduler, path: str, body: dict[str, Any], data: bytes) -> Events:
    """A stream whose tokens come one by one, each after what the one before brought has been read."""
    with_place = RawStreamBeside(port, path, body, scheduler)
    for token_id in byte_level_ids(data):
        play(scheduler, with_place.submit, [token_id])
    return with_place.stream.read()


class RawStreamBeside(RawStream):
    """A stream that has begun: the scheduler has its request."""

    def __init__(self, port: int, path: str, body: dict[str, Any], scheduler: FakeScheduler, last: str = "") -> None:
        self.stream = self
        super().__init__(port, path, body, last)
        self.submit = scheduler.take(Submit)
