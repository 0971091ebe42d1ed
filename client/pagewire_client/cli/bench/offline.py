"""pagewire bench offline: all prompts at once, as a script with `LLM` gives them."""

import asyncio
import dataclasses
import enum
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pagewire_client.bench.chrome_trace import device_busy, run_event, traced
from pagewire_client.bench.environment import count_gateways, describe_environment
from pagewire_client.bench.offline import OfflineReport, OfflineRun, run_offline
from pagewire_client.bench.workload import nano_workload, random_workload
from pagewire_client.cli.bench import options
from pagewire_client.cli.bench.output import JsonFile, show
from pagewire_client.cli.connection import read_vocab_size, service_addresses


class WorkloadName(enum.StrEnum):
    """Which prompts."""

    RANDOM = "random"
    NANO = "nano"


_DEFAULT_REQUESTS = {WorkloadName.RANDOM: 64, WorkloadName.NANO: 256}


def bench_offline(
    context: typer.Context,
    model: options.Model,
    workload: Annotated[
        WorkloadName,
        typer.Option("--workload", help="random: all of one length; nano: nano-vllm's 256 requests, sampled."),
    ] = WorkloadName.RANDOM,
    num_requests: options.NumRequests = None,
    input_len: options.InputLen = 128,
    output_len: options.OutputLen = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Runs, of which the median counts; none finds cached prompts.")
    ] = 1,
    prompts_cached: Annotated[
        bool, typer.Option("--prompts-cached", help="Run the same prompts once before each run.")
    ] = False,
    detokenize: Annotated[bool, typer.Option(help="Have the gateway make text of the tokens.")] = True,
    trace: options.TraceFile = None,
    json_file: JsonFile = None,
) -> None:
    """Measure a model on this machine, through a private service: output tokens over the time of one generate call.

    Other flags (--max-num-seqs 512 ...) are passed on to the engine.
    """
    count = num_requests or _DEFAULT_REQUESTS[workload]

    def note_run(run: OfflineRun) -> None:
        _say_run(run)
        events.append(run_event(time.monotonic() - run.wall_s, run.wall_s))

    with traced(trace) as (flags, events), service_addresses([], model, [*context.args, *flags]) as addresses:
        if workload is WorkloadName.NANO:
            asked = nano_workload(count)
        else:
            vocab_size = read_vocab_size(addresses[0])
            asked = random_workload(
                count, input_len, output_len, temperature=temperature, seed=seed, vocab_size=vocab_size
            )
        report = asyncio.run(
            run_offline(
                addresses[0],
                asked,
                num_repeats=repeats,
                prompts_cached=prompts_cached,
                detokenize=detokenize,
                on_run=note_run,
            )
        )
        num_gateways = asyncio.run(count_gateways(addresses))
    environment = describe_environment(
        engine_flags=context.args, num_gateway_processes=num_gateways, num_client_processes=1
    )
    busy = device_busy(events)
    figures = {"model": model, **dataclasses.asdict(report), "device_busy": busy}
    show("offline", figures, environment, _table(model, report, busy), json_file)


def _say_run(run: OfflineRun) -> None:
    Console(stderr=True, highlight=False).print(f"{run.output_tokens_per_s:,.1f} tok/s in {run.wall_s:.2f} s")


def _table(model: str, report: OfflineReport, busy: float | None) -> Table:
    workload = report.workload
    table = Table("figure", "value", title=f"{model}: {workload.name}, {workload.num_requests} requests, "
                  f"{workload.num_input_tokens:,} tokens in, {workload.num_output_tokens:,} out")  # fmt: skip
    table.add_row("output tok/s (median)", f"{report.output_tokens_per_s:,.1f}")
    for index, run in enumerate(report.runs, start=1):
        cells = f"{run.output_tokens_per_s:,.1f} tok/s, {run.wall_s:.2f} s, {run.num_cached_tokens:,} tokens cached"
        table.add_row(f"run {index}", cells)
    if busy is not None:
        table.add_row("GPU busy, first to last step of the last run", f"{busy:.1%}")
    return table
