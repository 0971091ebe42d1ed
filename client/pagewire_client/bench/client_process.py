"""A client process of a streaming benchmark: does what one line of JSON on standard input says, see streaming.py."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pagewire_client.aio import AsyncClient
from pagewire_client.bench.trace import Trace
from pagewire_client.bench.workload import RANDOM, Request, Workload
from pagewire_client.errors import PagewireError, first_error

_WARM_UP = Request([1, 2, 3, 4], 4)


def main() -> None:
    """Read the plan, run it, and write a line for each request."""
    plan = json.loads(sys.stdin.readline())
    try:
        asyncio.run(_run(plan))
    except* PagewireError as failures:
        _say({"error": str(first_error(failures))})


async def _run(plan: Mapping[str, Any]) -> None:
    requests = tuple(Request(prompt, output_len) for prompt, output_len in plan["requests"])
    workload = Workload(RANDOM, requests, plan["temperature"], plan["seed"])
    async with AsyncClient(",".join(plan["addresses"])) as client:
        for _ in plan["addresses"]:
            await client.generate(_WARM_UP.prompt, workload.params(_WARM_UP))
        _say({"ready": True})
        sys.stdin.readline()
        waiting = iter(requests)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan["concurrency"]):
                tasks.create_task(_run_one_after_another(waiting, client, workload))
    _say({"end": True})


async def _run_one_after_another(waiting: Iterator[Request], client: AsyncClient, workload: Workload) -> None:
    for request in waiting:
        trace = await _trace(client, request, workload)
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


if __name__ == "__main__":
    main()
