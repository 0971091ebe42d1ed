"""pagewire bench serve: clients that read streams, so many at a time, in processes of their own."""

import asyncio
import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagewire_client.bench.chrome_trace import request_events, traced
from pagewire_client.bench.environment import count_gateways, describe_environment
from pagewire_client.bench.report import Report, make_report
from pagewire_client.bench.streaming import run_streams
from pagewire_client.bench.workload import random_workload
from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.cli.bench import options
from pagewire_client.cli.bench.output import JsonFile, format_percentiles, show
from pagewire_client.cli.connection import read_vocab_size, service_addresses
from pagewire_client.cli.options import Local
from pagewire_client.progress import BatchProgress

Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        "-a",
        envvar="PAGEWIRE_ADDRESS",
        help=f"Service to use; repeatable, one for each of its gateways. Default: {DEFAULT_ADDRESS}.",
    ),
]


def bench_serve(
    context: typer.Context,
    address: Addresses = None,
    local: Local = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Requests that run at a time.")] = 8,
    num_requests: options.NumRequests = None,
    input_len: options.InputLen = 128,
    output_len: options.OutputLen = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    client_processes: Annotated[
        int, typer.Option("--client-processes", min=1, help="Processes that the clients are spread over.")
    ] = 1,
    trace: options.TraceFile = None,
    json_file: JsonFile = None,
) -> None:
    """Measure a running service, or with --local a private one, to which other flags (--gateways 2 ...) are passed on.

    As many requests as --concurrency run at a time; --num-requests defaults to it.
    """
    only_private = [*context.args, *(["--trace"] if trace else [])]
    if local is None and only_private:
        raise typer.BadParameter(f"{only_private[0]} is for a private service: give --local MODEL, too")
    with (
        traced(trace) as (flags, events),
        service_addresses(address or [DEFAULT_ADDRESS], local, [*context.args, *flags]) as addresses,
    ):
        vocab_size, count = read_vocab_size(addresses[0]), num_requests or concurrency
        workload = random_workload(
            count, input_len, output_len, temperature=temperature, seed=seed, vocab_size=vocab_size
        )
        console = Console(stderr=True)
        with BatchProgress(console, len(workload.requests), console.is_terminal) as progress:
            traces = asyncio.run(run_streams(addresses, workload, concurrency, client_processes, progress))
        events.extend(request_events(traces))
        num_gateways = asyncio.run(count_gateways(addresses))
    report = make_report(workload.summary, concurrency, traces)
    environment = describe_environment(
        engine_flags=None if local is None else context.args,
        num_gateway_processes=num_gateways,
        num_client_processes=client_processes,
    )
    table = _table(report, input_len, output_len, num_gateways, client_processes)
    show("serve", dataclasses.asdict(report), environment, table, json_file)


def _table(report: Report, input_len: int, output_len: int, num_gateways: int, num_clients: int) -> Table:
    table = Table(
        "figure",
        "value",
        title=f"{report.workload.num_requests} requests, {report.concurrency} at a time, {input_len} tokens in, "
        f"{output_len} out; gateway processes: {num_gateways}, client processes: {num_clients}",
    )
    decode = report.decode_tokens_per_s
    table.add_row("output tok/s", f"{report.output_tokens_per_s:,.1f}")
    table.add_row("decode tok/s (all streams decoding)", "-" if decode is None else f"{decode:,.1f}")
    table.add_row("wall time", f"{report.wall_s:.2f} s")
    table.add_row("tokens per message", f"{report.tokens_per_message:.2f}")
    table.add_row("time to first token, p50 / p90 / p99", format_percentiles(report.time_to_first_token))
    table.add_row("time per output token, p50 / p90 / p99", format_percentiles(report.time_per_output_token))
    table.add_row("between messages, p50 / p90 / p99", format_percentiles(report.inter_message_latency))
    return table
