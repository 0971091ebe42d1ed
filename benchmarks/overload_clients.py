"""Which processes press on a service? Some read streams, one asks for more than it takes."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import grpc
import grpc.aio

from pagewire.v1 import generate_pb2, inference_pb2_grpc

_STREAMS_PER_CHANNEL = 64
_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class StreamResult:
    """How a stream went: from its call to its end, in seconds, and the status that ended it."""

    seconds: float
    num_tokens: int
    code: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request among too many got, after so many seconds: the status, or ACCEPTED."""

    seconds: float
    code: str


def read_streams(
    addresses: Sequence[str],
    num_streams: int,
    num_tokens: int,
    counter: "Synchronized[int]",
    results: "Queue[list[StreamResult]]",
) -> None:
    """Open streams at once and read them to their end.

    Args:
        counter: tokens that have come, as they come.
    """

    async def run() -> list[StreamResult]:
        channels = _channels(addresses, max(len(addresses), -(-num_streams // _STREAMS_PER_CHANNEL)))
        stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        reads = (_read(stubs[number % len(stubs)], num_tokens, counter) for number in range(num_streams))
        return list(await asyncio.gather(*reads))

    results.put(asyncio.run(run()))


def ask_for_more(
    addresses: Sequence[str],
    num_requests: int,
    seconds: float,
    ready: Event,
    begin: Event,
    results: "Queue[list[Answer]]",
) -> None:
    """Make requests at even distances and wait for the first word on each; those that are accepted are left.

    Args:
        ready: set once all is connected.
        begin: waited for then.
    """

    async def run() -> list[Answer]:
        channels = _channels(addresses, len(addresses))
        for channel in channels:
            await channel.channel_ready()
        stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        ready.set()
        begin.wait()
        start_s = time.monotonic()
        asked: deque[asyncio.Task[Answer]] = deque()
        for number in range(num_requests):
            await asyncio.sleep(start_s + number * seconds / num_requests - time.monotonic())
            asked.append(asyncio.create_task(_ask(stubs[number % len(stubs)])))
        return list(await asyncio.gather(*asked))

    results.put(asyncio.run(run()))


def _channels(addresses: Sequence[str], count: int) -> list[grpc.aio.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [grpc.aio.insecure_channel(addresses[index % len(addresses)], options) for index in range(count)]


def _request(num_tokens: int) -> generate_pb2.GenerateRequest:
    return generate_pb2.GenerateRequest(
        token_ids=generate_pb2.TokenIds(ids=[65] * _PROMPT_TOKENS),
        stopping=generate_pb2.StopConditions(max_tokens=num_tokens, ignore_eos=True),
    )


async def _read(stub: Any, num_tokens: int, counter: "Synchronized[int]") -> StreamResult:
    start_s, received = time.monotonic(), 0
    try:
        async for event in stub.Generate(_request(num_tokens), wait_for_ready=True):
            received += len(event.delta.token_ids)
            with counter.get_lock():
                counter.value += len(event.delta.token_ids)
    except grpc.aio.AioRpcError as error:
        return StreamResult(time.monotonic() - start_s, received, error.code().name)
    return StreamResult(time.monotonic() - start_s, received, "OK")


async def _ask(stub: Any) -> Answer:
    start_s = time.monotonic()
    call = stub.Generate(_request(1000), wait_for_ready=True)
    try:
        await call.read()
        code = "ACCEPTED"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    answer = Answer(time.monotonic() - start_s, code)
    call.cancel()
    return answer
