"""Are bodies bounded in size and time, quiet streams kept alive, and is work ended for callers who are gone?"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from scheduler_service.gateway.http.body import BodyReader
from scheduler_service.gateway.http.connected import CallerGoneError, run_while_connected
from scheduler_service.gateway.http.errors import HttpError, error_response
from scheduler_service.gateway.http.event_stream import EventStream
from tests.fakes.patience import PATIENCE_S

Message = dict[str, Any]
GONE: Message = {"type": "http.disconnect"}


def part(data: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": not is_last}


def receiver(messages: Iterable[Message]) -> Callable[[], Awaitable[Message]]:
    """Gives the messages, then nothing ever."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def request_of(*messages: Message) -> Request:
    headers = [(b"content-type", b"Application/JSON; charset=utf-8")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receiver(messages))


def read(reader: BodyReader, *messages: Message) -> bytes:
    return asyncio.run(reader.read_json(request_of(*messages)))


def test_a_body_is_read_up_to_its_limit() -> None:
    assert read(BodyReader(4), part(b"ab"), part(b"cd", is_last=True)) == b"abcd"
    with pytest.raises(HttpError) as caught:
        read(BodyReader(4), part(b"ab"), part(b"cd"), part(b"e"), part(b"f" * 100, is_last=True))
    assert caught.value.status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(HttpError) as caught:
        read(BodyReader(4, timeout_s=0.05), part(b"a"))
    assert caught.value.status is HTTPStatus.REQUEST_TIMEOUT


def test_all_bodies_together_are_limited() -> None:
    async def run() -> None:
        reader = BodyReader(4, max_total_bytes=6)
        waiting = asyncio.create_task(reader.read_json(request_of(part(b"abcd"))))
        await asyncio.sleep(0)
        with pytest.raises(HttpError) as caught:
            await reader.read_json(request_of(part(b"abc", is_last=True)))
        assert caught.value.status is HTTPStatus.SERVICE_UNAVAILABLE
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await reader.read_json(request_of(part(b"abc", is_last=True))) == b"abc"

    asyncio.run(run())


def test_whoever_leaves_within_a_body_is_gone() -> None:
    with pytest.raises(ClientDisconnect):
        read(BodyReader(4), part(b"ab"), GONE)


def test_work_is_cancelled_when_its_caller_leaves() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    with pytest.raises(CallerGoneError):
        asyncio.run(run_while_connected(receiver([part(b""), GONE]), work()))
    assert ended == ["work"]


def test_work_that_ends_gives_its_result_or_its_error() -> None:
    async def work(fails: bool) -> str:
        await asyncio.sleep(0)
        if fails:
            raise ZeroDivisionError
        return "done"

    assert asyncio.run(run_while_connected(receiver([]), work(False))) == "done"
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_while_connected(receiver([]), work(True)))


def test_a_quiet_stream_has_comments_and_no_two_writes_at_once() -> None:
    sent: list[bytes] = []
    writing = 0
    pinged = asyncio.Event()

    async def send(message: Any) -> None:
        nonlocal writing
        writing += 1
        assert writing == 1
        await asyncio.sleep(0)
        sent.append(message.get("body", b"head"))
        if sent.count(b": ping\n\n") == 2:
            pinged.set()
        writing -= 1

    async def run() -> None:
        events = EventStream(send, {}, ping_period_s=0.01)
        pinging = asyncio.create_task(events.ping_when_idle())
        # Nothing is sent before the stream has begun.
        await asyncio.sleep(0.05)
        assert sent == []
        await events.begin()
        async with asyncio.timeout(PATIENCE_S):
            await pinged.wait()
        await events.send(b"{}", "a:1")
        pinging.cancel()
        await events.end()

    asyncio.run(run())
    assert sent[0] == b"head"
    assert b"id: a:1\ndata: {}\n\n" in sent
    assert sent[-1] == b""


def test_what_nobody_expected_tells_nothing() -> None:
    answer = error_response(ZeroDivisionError("secret"))
    assert answer.status_code == 500
    assert b"secret" not in answer.body
