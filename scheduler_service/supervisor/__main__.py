"""The supervisor's command line: parses flags and environment, runs the service, ends with 0 or one clear line."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import IO, cast

from rich.console import Console

from pagewire.ipc.logs import LogFormat
from scheduler_service.supervisor.children import ServiceConfig, service_children
from scheduler_service.supervisor.engine_flags import add_engine_flags
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.events import EventPipe
from scheduler_service.supervisor.output import Output, OutputHandler
from scheduler_service.supervisor.restart_policy import RestartPolicy
from scheduler_service.supervisor.service import MakeChildren, Surroundings, serve
from scheduler_service.supervisor.stderr_writer import guarded_stderr
from scheduler_service.supervisor.supervisor import Timing


def main(arguments: list[str] | None = None, make_children: MakeChildren = service_children) -> int:
    """Run the service; gives the exit status."""
    options = _parse(arguments)
    with guarded_stderr() as stderr:
        return _run(options, make_children, Console(file=cast(IO[str], stderr), markup=False, emoji=False))


def _run(options: argparse.Namespace, make_children: MakeChildren, console: Console) -> int:
    events = EventPipe(options.event_fd) if options.event_fd is not None else None
    on_stage = events.stage if events is not None else None
    log_format = LogFormat(options.log_format or LogFormat.TEXT)
    output = Output(console, show_progress=options.progress, on_stage=on_stage, log_format=log_format)
    logging.basicConfig(level=(options.log_level or "info").upper(), handlers=[OutputHandler(output)])
    config = ServiceConfig(
        tuple(options.listen),
        options.gateways,
        vars(options),
        options.http,
        options.step_timeout,
        options.drain_timeout,
        options.health_listen,
        options.share_port,
    )
    restart = RestartPolicy(max_restarts=options.max_restarts)
    timing = Timing(restart, options.grace_s, options.drain_timeout, options.heartbeat_timeout)
    try:
        around = Surroundings(output, events, _cache_dir(), options.run_dir, timing)
        asyncio.run(serve(options.model, options.model_name, config, around, make_children))
    except ServiceError as error:
        if events is not None:
            events.failed(str(error))
        # A program that is still waiting for the start tells its user itself.
        if events is None or events.was_ready:
            output.say(f"pagewire: {error}")
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler_service.supervisor",
        description="Starts gateway, scheduler and workers on this machine, and restarts what dies or hangs. SIGTERM "
        "lets open streams end and then ends all, SIGINT (Ctrl-C) does not wait for them, a second signal kills.",
    )
    _add_service_flags(parser)
    _add_patience_flags(parser)
    parser.add_argument(
        "--event-fd", type=int, metavar="N", help="pipe for events to the program that started this one"
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, default=True, help="show how far the start is"
    )
    add_engine_flags(parser)
    return parser.parse_args(arguments)


def _add_service_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="SPEC", help="GGUF file, safetensors directory, Hub id, demo or dummy:NAME"
    )
    parser.add_argument("--model-name", metavar="NAME", help="name that requests use; default: taken from the model")
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="HOST:PORT or unix:/path; repeatable; default: a private socket alone",
    )
    parser.add_argument(
        "--gateways", type=_positive, default=1, metavar="N", help="gateway processes, on PORT, PORT+1, ...; default 1"
    )
    parser.add_argument(
        "--share-port",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="all gateways listen on the same ports, and the kernel gives each connection to one of them",
    )
    parser.add_argument(
        "--health-listen",
        metavar="ADDRESS",
        help="serve grpc.health.v1 alone here, in plaintext and without keys; further gateways on PORT+1, ...",
    )
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="serve OpenAI's API, /healthz and /readyz here; further gateways as with --listen; default: off",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to make the private directory for sockets")


def _add_patience_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--drain-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds that open streams have after SIGTERM; default 30",
    )
    add(
        "--heartbeat-timeout",
        type=_heartbeat_timeout,
        default=5.0,
        metavar="S",
        help="a process that is stopped or deadlocked for so many seconds is replaced; default 5, at least 1",
    )
    add(
        "--step-timeout",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="a worker whose step takes so many seconds is replaced; default 300",
    )
    parser.add_argument(
        "--grace-s", type=_seconds, default=10.0, metavar="X", help="seconds between SIGTERM and SIGKILL; default 10"
    )
    parser.add_argument(
        "--max-restarts", type=int, default=10, metavar="N", help="failed starts in a row after the first; default 10"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return value


def _heartbeat_timeout(text: str) -> float:
    value = _seconds(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 second or more: heartbeats come four times a second")
    return value


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pagewire"
    except RuntimeError as error:
        raise ServiceError("this user has no home directory for a cache: set XDG_CACHE_HOME to a directory") from error


if __name__ == "__main__":
    sys.exit(main())
