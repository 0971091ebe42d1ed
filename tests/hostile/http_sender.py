"""What may a gateway answer to an HTTP request, however hostile? A good answer, or one that says what was wrong."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tests.hostile.http_cases import HttpRequest

# Of a server that is well: what it does not do, is too busy for, or had too little time for.
_MEANT_FAULTS = (501, 503, 504, 505)
_MAX_ANSWER_BYTES = 64 << 20


@dataclass(slots=True)
class Answer:
    """The first answer on a connection: what came of it, and whether all did."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False


class HttpSender:
    """Sends requests, each on its own connection.

    Args:
        port: of the gateway.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def send(self, request: HttpRequest) -> tuple[str, str]:
        """Send one; gives its status, and what is wrong with the answer, if anything is."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_ANSWER_BYTES)
        answer = Answer()
        try:
            writer.write(request.data)
            async with asyncio.timeout(request.give_up_after_s):
                await writer.drain()
                await read_answer(reader, answer, is_head=request.is_head)
        except TimeoutError:
            pass
        except (ConnectionError, asyncio.IncompleteReadError):
            if request.is_whole and not answer.status:
                return "cut", "the connection was cut without an answer"
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()
        return f"HTTP {answer.status or 'left'}", "; ".join(complaints(answer, is_head=request.is_head))


async def read_answer(reader: asyncio.StreamReader, answer: Answer, *, is_head: bool = False) -> None:
    """Read an answer as it comes: what has come is in `answer` whenever this ends."""
    status = 100
    while 100 <= status < 200:
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        lines = []
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            lines.append(line.decode("latin-1").strip())
    answer.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer.status = status
    if is_head:
        pass
    elif answer.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        answer.body += await reader.readexactly(int(answer.headers.get("content-length", "0")))
    answer.is_whole = True


def complaints(answer: Answer, *, is_head: bool = False) -> Iterator[str]:
    """What is wrong with an answer."""
    if not answer.status:
        return
    if answer.status >= 500 and answer.status not in _MEANT_FAULTS:
        yield f"status {answer.status}: {answer.body[:300]!r}"
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        yield from _event_complaints(answer)
        return
    is_json = answer.headers.get("content-type") == "application/json"
    if not answer.is_whole or is_head or (answer.status < 400 and not is_json):
        return
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        yield f"status {answer.status} with a body that is no JSON: {error}"
        return
    if answer.status >= 400 and not isinstance(value.get("error", {}).get("message"), str):
        yield f"status {answer.status} without a message: {answer.body[:300]!r}"


def _event_complaints(answer: Answer) -> Iterator[str]:
    events = answer.body.split(b"\n\n")
    if answer.is_whole and (not answer.body.endswith(b"\n\n") or len(events) < 2):
        yield f"a stream of events ends within one: {events[-1][-100:]!r}"
    for event in events[:-1]:
        lines = [line for line in event.split(b"\n") if not line.startswith((b"id: ", b":"))]
        if not lines or lines == [b"data: [DONE]"]:
            continue
        if len(lines) != 1 or not lines[0].startswith(b"data: "):
            yield f"an event is {event[:200]!r}"
            return
        if json.loads(lines[0][6:]).get("error", {}).get("code") == "internal_error":
            yield f"a stream fails: {event[:300]!r}"
