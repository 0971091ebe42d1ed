"""pagewire bench: how fast is a service, or a model on this machine?"""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagewire_client.aio import AsyncClient
from pagewire_client.bench.report import Percentiles, Report, make_report
from pagewire_client.bench.runner import Trace, run_workload, warm_up
from pagewire_client.bench.workload import Workload
from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.cli import options
from pagewire_client.cli.connection import service_address
from pagewire_client.errors import PagewireError
from pagewire_client.progress import BatchProgress

Concurrency = Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Requests that run at a time.")]
NumRequests = Annotated[
    int | None, typer.Option("--num-requests", "-r", min=1, help="Requests in all. Default: the concurrency.")
]
InputLen = Annotated[int, typer.Option("--input-len", min=1, help="Tokens in each prompt.")]
OutputLen = Annotated[int, typer.Option("--output-len", min=1, help="Tokens in each answer; EOS is ignored.")]
BenchTemperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
BenchSeed = Annotated[int, typer.Option("--seed", min=0, help="Of prompts and sampling.")]


def bench_serve(
    address: options.Address = DEFAULT_ADDRESS,
    concurrency: Concurrency = 8,
    num_requests: NumRequests = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    temperature: BenchTemperature = 0.0,
    seed: BenchSeed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure a running service."""
    workload = Workload(num_requests or concurrency, concurrency, input_len, output_len, temperature, seed)
    _bench(workload, address, None, [], as_json)


def bench_offline(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="GGUF file, safetensors directory, Hub id, or demo.")],
    concurrency: Concurrency = 8,
    num_requests: NumRequests = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    temperature: BenchTemperature = 0.0,
    seed: BenchSeed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure a model on this machine, through a private service. Other flags are passed on to the engine."""
    workload = Workload(num_requests or concurrency, concurrency, input_len, output_len, temperature, seed)
    _bench(workload, "", model, context.args, as_json)


def _bench(workload: Workload, address: str, local: str | None, flags: Sequence[str], as_json: bool) -> None:
    with service_address(address, local, flags) as ready_address:
        traces = asyncio.run(_run(ready_address, workload))
    if any(not trace.messages for trace in traces):
        raise PagewireError("a request ended without a token: there is nothing to measure")
    report = make_report(workload, traces)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        Console(highlight=False).print(_table(report))


async def _run(address: str, workload: Workload) -> list[Trace]:
    console = Console(stderr=True)
    async with AsyncClient(address) as client:
        await warm_up(client)
        with BatchProgress(console, workload.num_requests, console.is_terminal) as progress:
            return await run_workload(client, workload, progress)


def _table(report: Report) -> Table:
    workload = report.workload
    table = Table("figure", "value", title=f"{workload.num_requests} requests, {workload.concurrency} at a time, "
                  f"{workload.input_len} tokens in, {workload.output_len} out")  # fmt: skip
    decode = report.decode_tokens_per_s
    table.add_row("output tok/s", f"{report.output_tokens_per_s:,.1f}")
    table.add_row("decode tok/s (all streams decoding)", "-" if decode is None else f"{decode:,.1f}")
    table.add_row("wall time", f"{report.wall_s:.2f} s")
    table.add_row("tokens per message", f"{report.tokens_per_message:.2f}")
    table.add_row("time to first token, p50 / p90 / p99", _format(report.time_to_first_token))
    table.add_row("time per output token, p50 / p90 / p99", _format(report.time_per_output_token))
    table.add_row("between messages, p50 / p90 / p99", _format(report.inter_message_latency))
    return table


def _format(figure: Percentiles) -> str:
    return f"{figure.p50_ms:.1f} / {figure.p90_ms:.1f} / {figure.p99_ms:.1f} ms"
