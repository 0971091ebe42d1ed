"""pagewire bench startup: from the start of the first process to the first token."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from pagewire_client.bench.environment import describe_environment
from pagewire_client.bench.startup import StartupReport, measure_startup
from pagewire_client.cli.bench import options
from pagewire_client.cli.bench.output import JsonFile, show


def bench_startup(
    context: typer.Context,
    model: options.Model,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Starts, one after another.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure how long a service takes to start, stage by stage. Other flags are passed on to the engine."""
    flags = ["--log-level", "warning", "--no-progress", *context.args]
    starts = [measure_startup(model, flags) for _ in range(repeats)]
    report = {
        "model": model,
        "ready_s": statistics.median(start.ready_s for start in starts),
        "first_token_s": statistics.median(start.first_token_s for start in starts),
        "starts": [dataclasses.asdict(start) for start in starts],
    }
    show("startup", report, describe_environment(engine_flags=context.args), _table(model, starts), json_file)


def _table(model: str, starts: Sequence[StartupReport]) -> Table:
    table = Table("figure", "seconds", title=f"start of {model}")
    for start in starts:
        for stage in start.stages:
            table.add_row(f"  {stage.name}", f"{stage.duration_s:.2f}")
        table.add_row("ready", f"{start.ready_s:.2f}")
        table.add_row("first token", f"{start.first_token_s:.2f}", end_section=True)
    return table
