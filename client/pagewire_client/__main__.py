"""The command line `pagewire`: serve, generate, chat, models, status, keys, bench."""

import sys

import typer
from rich.console import Console

from pagewire_client.cli.bench.offline import bench_offline
from pagewire_client.cli.bench.output import with_json_file
from pagewire_client.cli.bench.parts import bench_gateway, bench_scheduler
from pagewire_client.cli.bench.serve import bench_serve
from pagewire_client.cli.bench.startup import bench_startup
from pagewire_client.cli.chat import chat
from pagewire_client.cli.generate import generate
from pagewire_client.cli.keys import PASS_ON, keys_curve, keys_new
from pagewire_client.cli.models import models
from pagewire_client.cli.serve import serve
from pagewire_client.cli.status import status
from pagewire_client.errors import PagewireError, first_error

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def make_app() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        name="pagewire",
        help="LLM inference over gRPC.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("serve", context_settings=_PASS_ON)(serve)
    app.command("generate")(generate)
    app.command("chat")(chat)
    app.command("models")(models)
    app.command("status")(status)
    bench = typer.Typer(help="Measure speed.", no_args_is_help=True)
    bench.command("offline", context_settings=_PASS_ON)(bench_offline)
    bench.command("serve", context_settings=_PASS_ON)(bench_serve)
    bench.command("startup", context_settings=_PASS_ON)(bench_startup)
    bench.command("scheduler")(bench_scheduler)
    bench.command("gateway")(bench_gateway)
    app.add_typer(bench, name="bench")
    keys = typer.Typer(help="Make keys for a service.", no_args_is_help=True)
    keys.command("new", context_settings=PASS_ON)(keys_new)
    keys.command("curve", context_settings=PASS_ON)(keys_curve)
    app.add_typer(keys, name="keys")
    return app


def main() -> None:
    """Run a command; a failure is one line on standard error and exit status 1."""
    arguments = sys.argv[1:]
    try:
        make_app()(with_json_file(arguments) if arguments[:1] == ["bench"] else arguments)
    except* PagewireError as failures:
        error = first_error(failures)
        Console(stderr=True, emoji=False).print(f"pagewire: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
