"""How does a service feel to clients that read streams? Runs a workload from client processes of their own.

this process                         client process (one or more)
  plan, one line of JSON       ->      connects
                               <-      {"ready": true}
  "go"                         ->      runs its part, so many requests at a time
                               <-      one line for each request that has ended
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pagewire_client.bench.trace import Trace
from pagewire_client.bench.workload import Workload
from pagewire_client.errors import PagewireError
from pagewire_client.progress import BatchProgress

_MODULE = "pagewire_client.bench.client_process"
_MAX_LINE_BYTES = 1 << 28


async def run_streams(
    addresses: Sequence[str], workload: Workload, concurrency: int, num_processes: int, progress: BatchProgress
) -> list[Trace]:
    """Run all requests, `concurrency` at a time over all processes; each spreads its streams over the addresses.

    Raises:
        PagewireError: a request failed; a benchmark with failures measures nothing.
    """
    num_processes = min(num_processes, concurrency, len(workload.requests))
    processes: list[Process] = []
    try:
        for _ in range(num_processes):
            processes.append(await _start())
        parts = [_plan(addresses, workload, concurrency, index, num_processes) for index in range(num_processes)]
        await asyncio.gather(*(_prepare(process, plan) for process, plan in zip(processes, parts, strict=True)))
        for process in processes:
            _write(process, "go")
        traces = await asyncio.gather(*(_read_traces(process, progress) for process in processes))
    finally:
        await _end(processes)
    return [trace for part in traces for trace in part]


def _plan(addresses: Sequence[str], workload: Workload, concurrency: int, index: int, count: int) -> dict[str, Any]:
    """The part of one of `count` processes: every count-th request, and its share of the streams."""
    return {
        "addresses": [*addresses[index % len(addresses) :], *addresses[: index % len(addresses)]],
        "requests": [[request.prompt, request.output_len] for request in workload.requests[index::count]],
        "concurrency": concurrency // count + (index < concurrency % count),
        "temperature": workload.temperature,
        "seed": workload.seed,
    }


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, stdin=PIPE, stdout=PIPE, limit=_MAX_LINE_BYTES
    )


async def _prepare(process: Process, plan: dict[str, Any]) -> None:
    _write(process, json.dumps(plan))
    assert process.stdin is not None
    await process.stdin.drain()
    await _read(process)


async def _read_traces(process: Process, progress: BatchProgress) -> list[Trace]:
    traces = []
    while "end" not in (message := await _read(process)):
        traces.append(Trace(message["sent_s"], [(when, count) for when, count in message["messages"]]))
        progress.add_tokens(traces[-1].num_tokens)
        progress.add_done()
    return traces


async def _read(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise PagewireError(f"a client process ended with exit status {await process.wait()}")
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise PagewireError(message["error"])
    return message


def _write(process: Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")


async def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
    await asyncio.gather(*(process.wait() for process in processes))
