"""How do callers treat a service? They wait, stop, leave in mid-stream, die, come too late, err, and come back.

Each kind of caller makes its requests, and asserts that they end as they should.
"""

import asyncio
import multiprocessing
import random
import string
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio

from pagewire.v1 import generate_pb2, inference_pb2_grpc

MAX_TOKENS = 16
# Of requests that do not reach their end: enough that it is not there first.
_UNREACHED_TOKENS = 4000
_LETTERS = string.ascii_lowercase
_STREAMS_PER_VICTIM = 16
_LIMIT_S = 60.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
# The stub's tokens repeat: some streams run into one of these.
_STOPS = ("dd", "ee", "fff", "gggg", "never")
_CODE = grpc.StatusCode
_UNKNOWN_TOKEN = 1 << 30
_TOO_LONG = 20_000

Request = generate_pb2.GenerateRequest


class Callers:
    """Makes calls over one connection; those that break connections make their own.

    Args:
        address: gRPC target.
        choice: what is done at random.
        on_tokens: told the number of tokens in each message.
    """

    def __init__(self, address: str, choice: random.Random, on_tokens: Callable[[int], None]) -> None:
        self._address = address
        self._choice = choice
        self._on_tokens = on_tokens
        self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload([__name__])

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def read_all(self) -> None:
        """Wait for the end."""
        num_tokens = self._choice.randint(1, MAX_TOKENS)
        call = self._generate(self._request(num_tokens))
        reason, token_ids = await self._read(call)
        assert (reason, len(token_ids)) == (generate_pb2.FINISH_REASON_LENGTH, num_tokens)

    async def stop_at_text(self) -> None:
        """Wait for a stop text, which may not come."""
        request = self._request(MAX_TOKENS)
        request.stopping.stop.extend(_STOPS)
        reason, _ = await self._read(self._generate(request))
        assert reason in (generate_pb2.FINISH_REASON_LENGTH, generate_pb2.FINISH_REASON_STOP)

    async def cancel(self) -> None:
        """Leave in mid-stream, or before the first word."""
        call = self._generate(self._request(_UNREACHED_TOKENS))
        await self._read_some(call, self._choice.randint(0, MAX_TOKENS))
        call.cancel()

    async def drop_connection(self) -> None:
        """Close a connection with an open stream."""
        async with grpc.aio.insecure_channel(self._address, _OPTIONS) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            await self._read_some(stub.Generate(self._request(_UNREACHED_TOKENS)), self._choice.randint(1, MAX_TOKENS))

    async def die(self) -> None:
        """Be a process with many streams that is killed."""
        requests = [self._request(_UNREACHED_TOKENS).SerializeToString() for _ in range(_STREAMS_PER_VICTIM)]
        await asyncio.to_thread(self._kill_victim, requests)

    async def come_too_late(self) -> None:
        """Let a deadline pass."""
        call = self._stub.Generate(self._request(_UNREACHED_TOKENS), timeout=self._choice.uniform(0.001, 0.05))
        await self._end_with(call, _CODE.DEADLINE_EXCEEDED)

    async def err(self) -> None:
        """Ask for what cannot be had."""
        request, code = self._request(MAX_TOKENS), _CODE.INVALID_ARGUMENT
        match self._choice.randrange(5):
            case 0:
                request.token_ids.ids.append(_UNKNOWN_TOKEN)
            case 1:
                request.token_ids.ids.extend([1] * _TOO_LONG)
            case 2:
                request.sampling.temperature = -1.0
            case 3:
                request.model, code = "another", _CODE.NOT_FOUND
            case _:
                request.chat.messages.add(role="user", content="No template")
                code = _CODE.FAILED_PRECONDITION
        await self._end_with(self._generate(request), code)

    async def come_back(self) -> None:
        """Leave, and go on with the stream in another call."""
        num_tokens = self._choice.randint(2, MAX_TOKENS)
        request = self._request(num_tokens)
        call = self._generate(request)
        request.resume.received_token_ids.extend(await self._read_some(call, 1, request))
        call.cancel()
        reason, token_ids = await self._read(self._generate(request))
        num_received = len(request.resume.received_token_ids)
        assert (reason, num_received + len(token_ids)) == (generate_pb2.FINISH_REASON_LENGTH, num_tokens)

    async def take_over(self) -> None:
        """Go on with a stream in another call while the first one is open, then as somebody who is not its caller."""
        request = self._request(_UNREACHED_TOKENS)
        call = self._generate(request)
        request.resume.received_token_ids.extend(await self._read_some(call, 1, request))
        second = self._generate(request)
        # On a busy machine the last token may be there first after all.
        await self._end_with(call, _CODE.ABORTED, _CODE.OK)
        await self._read_some(second, 1)
        request.resume.seed ^= 1
        await self._end_with(self._generate(request), _CODE.INVALID_ARGUMENT, _CODE.OK)
        second.cancel()

    # ---- calls ----------------------------------------------------------------------------------------------------

    def _request(self, max_tokens: int) -> Request:
        """With a prompt that nobody else has, as text or as token ids."""
        words = (
            self._choice.choices(_LETTERS, k=self._choice.randint(1, 8)) for _ in range(self._choice.randint(1, 10))
        )
        text = " ".join("".join(word) for word in words)
        request = Request(stopping=generate_pb2.StopConditions(max_tokens=max_tokens, ignore_eos=True))
        if self._choice.random() < 0.5:
            request.text = text
        else:
            request.token_ids.ids.extend(text.encode())
        return request

    def _generate(self, request: Request) -> Any:
        return self._stub.Generate(request, timeout=_LIMIT_S)

    async def _read(self, call: Any) -> tuple[int, list[int]]:
        """How the call ended, and its tokens."""
        token_ids: list[int] = []
        reason = None
        while (event := await call.read()) is not grpc.aio.EOF:
            assert reason is None, "an event after the last one"
            token_ids += event.delta.token_ids
            self._on_tokens(len(event.delta.token_ids))
            if event.HasField("finished"):
                reason = event.finished.reason
        assert reason is not None, "a stream without an end"
        return reason, token_ids

    async def _read_some(self, call: Any, count: int, resumed: Request | None = None) -> list[int]:
        """Read until so many tokens have come; `resumed` learns how to go on."""
        token_ids: list[int] = []
        while len(token_ids) < count:
            event = await call.read()
            assert event is not grpc.aio.EOF, "the end came before it should"
            if resumed is not None and event.HasField("accepted"):
                resumed.resume.request_id, resumed.resume.seed = event.accepted.request_id, event.accepted.seed
            token_ids += event.delta.token_ids
        self._on_tokens(len(token_ids))
        return token_ids

    async def _end_with(self, call: Any, *codes: grpc.StatusCode) -> None:
        with suppress(grpc.aio.AioRpcError):
            while (event := await call.read()) is not grpc.aio.EOF:
                self._on_tokens(len(event.delta.token_ids))
        code = await call.code()
        assert code in codes, f"{code.name}: {await call.details()}"

    def _kill_victim(self, requests: list[bytes]) -> None:
        ours, theirs = self._forks.Pipe()
        victim = self._forks.Process(target=_read_until_killed, args=(self._address, requests, theirs), daemon=True)
        victim.start()
        theirs.close()
        with ours:
            assert ours.poll(_LIMIT_S), "the victim got no tokens"
            ours.recv()
            victim.kill()
        victim.join()
        victim.close()


def _read_until_killed(address: str, requests: list[bytes], ready: Connection) -> None:
    """The life of a process: tell once every stream has its first token, and read on."""
    asyncio.run(_read_for_ever(address, requests, ready))


async def _read_for_ever(address: str, requests: list[bytes], ready: Connection) -> None:
    stub: Any = inference_pb2_grpc.InferenceServiceStub(grpc.aio.insecure_channel(address, _OPTIONS))
    calls = [stub.Generate(Request.FromString(request)) for request in requests]

    async def read(call: Any, is_first: asyncio.Event) -> None:
        async for event in call:
            if event.HasField("delta"):
                is_first.set()

    firsts = [asyncio.Event() for _ in calls]
    readers = [asyncio.create_task(read(call, first)) for call, first in zip(calls, firsts, strict=True)]
    await asyncio.gather(*(first.wait() for first in firsts))
    ready.send(None)
    await asyncio.gather(*readers)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of caller: what it does, how many requests that makes, and which share of all requests is its."""

    run: Callable[[Callers], Awaitable[None]]
    num_requests: int
    share: float


KINDS = {
    "read all": Kind(Callers.read_all, 1, 0.50),
    "stop at a text": Kind(Callers.stop_at_text, 1, 0.10),
    "cancel": Kind(Callers.cancel, 1, 0.10),
    "drop the connection": Kind(Callers.drop_connection, 1, 0.05),
    "die": Kind(Callers.die, _STREAMS_PER_VICTIM, 0.05),
    "come too late": Kind(Callers.come_too_late, 1, 0.05),
    "err": Kind(Callers.err, 1, 0.05),
    "come back": Kind(Callers.come_back, 2, 0.05),
    "take over": Kind(Callers.take_over, 3, 0.05),
}
