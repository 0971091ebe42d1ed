"""Does the HTTP server hold its callers to its limits, and end when it is told to?"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scheduler_service.gateway.exceptions import StartError
from scheduler_service.gateway.http.app import make_app
from scheduler_service.gateway.http.protocol import ConnectionLimits
from scheduler_service.gateway.http.server import HttpServer, bind_http
from scheduler_service.gateway.open_calls import OpenCalls
from tests.fakes.patience import PATIENCE_S

GET = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = ConnectionLimits(max_connections=2, max_head_bytes=1000, head_timeout_s=0.2, idle_timeout_s=1)


class Served:
    """A running server, and what its application does."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.calls = OpenCalls()
        self.release = asyncio.Event()
        self.began = asyncio.Event()
        routes = [Route("/ready", self.ready), Route("/late", self.late), Route("/deaf", self.ready, methods=["POST"])]
        bound = bind_http("127.0.0.1:0")
        self.port = int(bound.address.rpartition(":")[2])
        self.server = HttpServer(bound, make_app(routes, self.calls, keyring=None), limits)

    async def ready(self, _request: Request) -> PlainTextResponse:
        return PlainTextResponse("yes")

    async def late(self, _request: Request) -> PlainTextResponse:
        self.began.set()
        await self.release.wait()
        return PlainTextResponse("late")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await read_all(reader)
        writer.close()
        return answer


async def read_all(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while data := await reader.read(65536):
            answer += data
    return answer


def run(test: Callable[[Served], Awaitable[None]], limits: ConnectionLimits = SMALL) -> None:
    async def serve() -> None:
        served = Served(limits)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await test(served)
        finally:
            served.release.set()
            await served.server.stop(PATIENCE_S)

    asyncio.run(serve())


def error_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"])


def test_a_head_that_comes_byte_by_byte_is_cut() -> None:
    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        num_sent = 0
        reading = asyncio.create_task(read_all(reader))
        while not reading.done():
            writer.write(GET[num_sent % 20 : num_sent % 20 + 1])
            num_sent += 1
            await asyncio.wait([reading], timeout=0.05)
        assert (await reading).startswith(b"HTTP/1.1 408 ")
        writer.close()

    run(test)


def test_whoever_says_nothing_is_cut_at_the_start_and_after_an_answer() -> None:
    async def test(served: Served) -> None:
        assert error_of(await served.ask(b"")) == "the request's head took too long"
        answer = await served.ask(GET)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"yes")

    run(test)


def test_the_second_head_of_a_connection_is_timed_too() -> None:
    async def test(served: Served) -> None:
        answer = await served.ask(GET + b"GET /re")
        assert answer.startswith(b"HTTP/1.1 200 ")

    run(test)


def test_a_head_may_be_only_so_long() -> None:
    async def test(served: Served) -> None:
        answer = await served.ask(b"GET /ready HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2000 + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 431 ")

    run(test)


def test_connections_are_limited_and_room_comes_back() -> None:
    async def test(served: Served) -> None:
        open_ones = [await served.connect() for _ in range(2)]
        for reader, writer in open_ones:
            writer.write(GET)
            await reader.readuntil(b"yes")
        answer = await served.ask(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert "too many connections" in error_of(answer)
        for _, writer in open_ones:
            writer.close()
        while not (await served.ask(GET)).startswith(b"HTTP/1.1 200 "):
            pass

    run(test)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400),
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST /deaf HTTP/1.1\r\nHost: x\nContent-Length: 3\r\n\r\nabc\r\n GET /ready HTTP/1.1\r\n\r\n", 200),
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST /deaf HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    ],
)
def test_doubtful_framing_is_refused_and_nothing_after_it_is_read(head: bytes, status: int) -> None:
    async def test(served: Served) -> None:
        answer = await served.ask(head + GET)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.count(b"HTTP/1.1 ") == 1

    run(test)


def test_a_connection_ends_with_its_answer_while_the_gateway_drains() -> None:
    async def test(served: Served) -> None:
        served.calls.close()
        answer = await served.ask(GET)
        assert b"connection: close" in answer

    run(test, ConnectionLimits(max_connections=2))


@pytest.mark.parametrize(("timeout_s", "last"), [(PATIENCE_S, b"late"), (0.0, b"")])
def test_stop_waits_for_answers_as_long_as_it_may(timeout_s: float, last: bytes) -> None:
    async def test(served: Served) -> None:
        asking = asyncio.create_task(served.ask(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n"))
        await served.began.wait()
        stopping = asyncio.create_task(served.server.stop(timeout_s))
        if last:
            await asyncio.sleep(0)
            served.release.set()
        await stopping
        assert (await asking).endswith(last)
        with pytest.raises(OSError, match=r"refused|failed"):
            await served.connect()

    run(test)


def test_an_address_that_is_taken_is_told() -> None:
    first = bind_http("localhost:0")
    with pytest.raises(StartError, match=r"cannot listen on .*choose another --http address"):
        bind_http(first.address)
    for listener in first.sockets:
        listener.close()
