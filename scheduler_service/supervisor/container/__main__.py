"""Command line of a container's first process: a scheduler, or the ranks of one host, and their health for probes.

    python -m scheduler_service.supervisor.container --health-listen 0.0.0.0:8086 --ranks 4 -- python -m gpu_worker ...

What is started here is not started again: when one process ends or hangs, all end, and so does the container, which
its own keeper restarts.
"""

import argparse
import asyncio
import logging
import signal
import sys

from rich.console import Console

from pagewire.ipc.logs import LogFormat
from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.container.run import run_until_one_ends
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.output import Output, OutputHandler


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM, which end all processes; 0 after that, 1 when a process ended by itself."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        specs = _specs(options)
    except ValueError as error:
        parser.error(str(error))
    output = Output(Console(stderr=True, markup=False, emoji=False), show_progress=False, log_format=options.log_format)
    logging.basicConfig(level=options.log_level.upper(), handlers=[OutputHandler(output)])
    try:
        asyncio.run(_run(specs, options, output))
    except ServiceError as error:
        output.say(f"container: {error}")
        return 1
    return 0


async def _run(specs: list[ChildSpec], options: argparse.Namespace, output: Output) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run_until_one_ends(
        specs, options.health_listen, stop, output.line, options.heartbeat_timeout, options.grace_s
    )


def _specs(options: argparse.Namespace) -> list[ChildSpec]:
    """The processes, with their ranks if they are ranks.

    Raises:
        ValueError: the flags make no sense together.
    """
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ValueError("say after -- which command to run")
    if options.ranks is None:
        return [ChildSpec(options.name, tuple(command), max_quiet_s=options.step_timeout)]
    if options.ranks < 1 or options.host_index < 0:
        raise ValueError("--ranks must be 1 or more, and --host-index 0 or more")
    first = options.ranks * options.host_index
    return [
        ChildSpec(f"{options.name}-{rank}", (*command, "--rank", str(rank)), max_quiet_s=options.step_timeout)
        for rank in range(first, first + options.ranks)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler_service.supervisor.container",
        description="Starts processes, tells probes of their health over gRPC, and ends them all when one ends.",
    )
    add = parser.add_argument
    add(
        "--health-listen",
        required=True,
        metavar="HOST:PORT",
        help="serve grpc.health.v1 here: '' when all processes are ready, 'liveness' while none of them hangs",
    )
    add("--name", default="worker", help="what logs call the process; of several, with a dash and the rank")
    add("--ranks", type=int, metavar="N", help="start the command N times, each with a --rank of its own")
    add("--host-index", type=int, default=0, metavar="I", help="of several hosts with N ranks each: this one, from 0")
    add("--step-timeout", type=float, default=300.0, metavar="S", help="a step that takes longer is a hang")
    add("--heartbeat-timeout", type=float, default=5.0, metavar="S", help="and so is silence for so long")
    add("--grace-s", type=float, default=10.0, metavar="S", help="seconds between SIGTERM and SIGKILL")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add("--log-format", type=LogFormat, default=LogFormat.TEXT, choices=tuple(LogFormat), help="of the command's lines")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the process to start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
