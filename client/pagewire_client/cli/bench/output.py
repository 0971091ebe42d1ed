"""Where does a benchmark's report go? To the terminal as a table, or as JSON to standard output or a file."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pagewire_client.bench.environment import Environment
from pagewire_client.bench.report import Percentiles
from pagewire_client.errors import PagewireError

_FLAG = "--json"
_FILE_WIDTH = 160
_STANDARD_OUTPUT = "-"

JsonFile = Annotated[
    str | None,
    typer.Option(_FLAG, metavar="[FILE]", help="Write JSON: to FILE beside the table, or alone in its place."),
]


def with_json_file(arguments: Sequence[str]) -> list[str]:
    """A command line of `bench` in which --json has its FILE, which may be left out before a flag or at the end."""
    following = [*arguments[1:], "-"]
    return [
        f"{_FLAG}={_STANDARD_OUTPUT}" if argument == _FLAG and follower.startswith("-") else argument
        for argument, follower in zip(arguments, following, strict=True)
    ]


def show(bench: str, report: Mapping[str, Any], environment: Environment, table: Table, json_file: str | None) -> None:
    """Print and write a report.

    Raises:
        PagewireError: the file cannot be written.
    """
    if json_file != _STANDARD_OUTPUT:
        Console(highlight=False, width=stdout_width()).print(table)
    if json_file is None:
        return
    text = json.dumps({"bench": bench, "environment": dataclasses.asdict(environment), **report}, indent=2)
    if json_file == _STANDARD_OUTPUT:
        print(text)
        return
    try:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PagewireError(f"cannot write {json_file}: {error.strerror}") from error


def stdout_width() -> int | None:
    """Columns of a table on standard output: a terminal has as many as it says (None), a file or pipe has enough."""
    return None if sys.stdout.isatty() else _FILE_WIDTH


def format_percentiles(figure: Percentiles) -> str:
    """One cell of a table."""
    return f"{figure.p50_ms:.1f} / {figure.p90_ms:.1f} / {figure.p99_ms:.1f} ms"
