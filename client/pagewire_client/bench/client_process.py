"""A client process of a streaming benchmark: does what one line of JSON on standard input says, see streaming.py."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from pagewire_client.aio import AsyncClient
from pagewire_client.bench.trace import Trace
from pagewire_client.bench.workload import RANDOM, Request, Workload
from pagewire_client.errors import PagewireError

_WARM_UP = Request([1, 2, 3, 4], 4)


def main() -> None:
    """Read the plan, run it, and write a line for each request."""
    plan = json.loads(sys.stdin.readline())
    try:
        asyncio.run(_run(plan))
    except* PagewireError as failures:
        _say({"error": str(_first(failures))})


async def _run(plan: Mapping[str, Any]) -> None:
    requests = tuple(Request(prompt, output_len) for prompt, output_len in plan["requests"])
    workload = Workload(RANDOM, requests, plan["temperature"], plan["seed"])
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address)) for address in plan["addresses"]]
        for client in clients:
            await client.generate(_WARM_UP.prompt, workload.params(_WARM_UP))
        _say({"ready": True})
        sys.stdin.readline()
        waiting, turns = iter(requests), itertools.cycle(clients)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan["concurrency"]):
                tasks.create_task(_run_one_after_another(waiting, turns, workload))
    _say({"end": True})


async def _run_one_after_another(
    waiting: Iterator[Request], clients: Iterator[AsyncClient], workload: Workload
) -> None:
    for request in waiting:
        trace = await _trace(next(clients), request, workload)
        _say({"sent_s": trace.sent_s, "messages": trace.messages})


async def _trace(client: AsyncClient, request: Request, workload: Workload) -> Trace:
    trace = Trace(time.monotonic())
    async with client.stream(request.prompt, workload.params(request)) as stream:
        async for chunk in stream:
            if chunk.token_ids:
                trace.messages.append((time.monotonic(), len(chunk.token_ids)))
    if trace.num_tokens != request.output_len:
        raise PagewireError(f"{trace.num_tokens} tokens came, {request.output_len} were asked for")
    return trace


def _say(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _first(failures: BaseException) -> BaseException:
    while isinstance(failures, BaseExceptionGroup):
        failures = failures.exceptions[0]
    return failures


if __name__ == "__main__":
    main()
