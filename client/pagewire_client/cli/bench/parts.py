"""pagewire bench scheduler, gateway: one process of the stack with stand-ins for its neighbours.

What measures belongs to that process, so it is run as a program of its own, like the service itself.
"""

import enum
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pagewire_client.bench.environment import describe_environment
from pagewire_client.cli.bench.output import JsonFile, show
from pagewire_client.errors import PagewireError

_SCHEDULER = "scheduler_service.bench.scheduler"
_GATEWAY = "scheduler_service.bench.gateway"
_DEFAULT_TOKEN_RATES = (20_000.0, 40_000.0, 60_000.0)


class SchedulerMode(enum.StrEnum):
    """How the scheduler is driven."""

    CALLS = "calls"
    SOCKETS = "sockets"


def bench_scheduler(
    num_seqs: Annotated[int, typer.Option("--num-seqs", min=1, help="Running sequences.")] = 256,
    prompt_len: Annotated[int, typer.Option("--prompt-len", min=1, help="Tokens in each prompt.")] = 500,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that are timed.")] = 2000,
    mode: Annotated[
        SchedulerMode | None,
        typer.Option("--mode", help="calls: as functions; sockets: over ZeroMQ. Default: both."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the scheduler's time for a step, with a worker that answers at once."""
    modes = [mode] if mode is not None else list(SchedulerMode)
    arguments = ["--num-seqs", str(num_seqs), "--prompt-len", str(prompt_len), "--steps", str(steps)]
    runs = _run(_SCHEDULER, [*arguments, "--modes", *modes])
    report = {"num_seqs": num_seqs, "prompt_len": prompt_len, "steps": steps, "runs": runs}
    title = f"scheduler, {num_seqs} sequences with prompts of {prompt_len} tokens"
    show("scheduler", report, describe_environment(), _table(title, runs), json_file)


def bench_gateway(
    num_streams: Annotated[int, typer.Option("--num-streams", min=1, help="Open streams.")] = 256,
    num_tokens: Annotated[int, typer.Option("--num-tokens", min=1, help="Tokens of each stream.")] = 500,
    token_rate: Annotated[
        list[float] | None, typer.Option("--token-rate", min=1.0, help="Tokens per second to offer; repeatable.")
    ] = None,
    client_processes: Annotated[int, typer.Option("--client-processes", min=1, help="That read the streams.")] = 1,
    model: Annotated[
        Path | None, typer.Option("--model", help="Model whose tokenizer to use. Default: a dummy.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure one gateway process between a scheduler that offers tokens at a fixed rate and real gRPC clients."""
    arguments = ["--num-streams", str(num_streams), "--num-tokens", str(num_tokens)]
    arguments += ["--client-processes", str(client_processes), *(["--model", str(model)] if model else [])]
    runs = _run(_GATEWAY, [*arguments, "--token-rates", *(str(rate) for rate in token_rate or _DEFAULT_TOKEN_RATES)])
    report = {"num_streams": num_streams, "num_tokens": num_tokens, "runs": runs}
    environment = describe_environment(num_gateway_processes=1, num_client_processes=client_processes)
    title = f"one gateway process, {num_streams} streams; client processes: {client_processes}"
    show("gateway", report, environment, _table(title, runs), json_file)


def _run(module: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 (our own module)
    if done.returncode != 0:
        raise PagewireError(f"the benchmark {module} ended with exit status {done.returncode}; see its messages above")
    runs: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return runs


def _table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each run, a row for each of its figures."""
    table = Table("figure", *(f"run {index}" for index, _ in enumerate(runs, start=1)), title=title)
    for figure in runs[0]:
        table.add_row(figure.replace("_per_", "/").replace("_", " "), *(_cell(run[figure]) for run in runs))
    return table


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
