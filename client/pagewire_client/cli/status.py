"""pagewire status: the processes of a service, what they do, and how full it is."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagewire_client.channel import DEFAULT_ADDRESS
from pagewire_client.cli import options
from pagewire_client.cli.connection import AccessOptions
from pagewire_client.cli.printing import print_json, writing_output
from pagewire_client.client import Client
from pagewire_client.errors import PagewireError, UnavailableError
from pagewire_client.retry import NO_RETRY
from pagewire_client.types import Engine, EngineState, Process, ProcessState, ServerInfo

_TIMEOUT_S = 5.0
_STYLES = {
    ProcessState.IDLE: "green",
    ProcessState.BUSY: "green",
    ProcessState.STARTING: "yellow",
    ProcessState.DRAINING: "yellow",
    ProcessState.HUNG: "red",
    ProcessState.DEAD: "red",
}
_ENGINE_STYLES = {
    EngineState.READY: "green",
    EngineState.STARTING: "yellow",
    EngineState.DRAINING: "yellow",
    EngineState.UNAVAILABLE: "red",
}


def status(
    address: options.Address = DEFAULT_ADDRESS,
    api_key_file: options.ApiKeyFile = None,
    tls: options.UseTls = False,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    as_json: options.Json = False,
) -> None:
    """Show the processes of a service, whether it is ready or not."""
    info = _ask(address, options.access(api_key_file, tls, tls_ca, tls_cert, tls_key))
    if as_json:
        print_json(dataclasses.asdict(info))
    else:
        with writing_output():
            _print(info)


def _ask(address: str, access: AccessOptions) -> ServerInfo:
    with Client(address, timeout_s=_TIMEOUT_S, retry=NO_RETRY, **access) as client:
        try:
            return client.server_info()
        except UnavailableError as error:
            raise PagewireError(f"no service answers at {address}: {error.message}") from error


def _print(info: ServerInfo) -> None:
    table = Table("process", "pid", "incarnation", "restarts", "state", "steps", "last", "detail")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for process in info.processes:
        table.add_row(
            Text(process.name),
            str(process.pid or ""),
            process.incarnation,
            str(process.num_restarts),
            Text(process.state.value, style=_STYLES.get(process.state, "")),
            str(process.num_steps or ""),
            _age(process),
            Text(process.detail),
        )
    console = Console(highlight=False, emoji=False)
    if len(info.engines) > 1:
        console.print(_engine_table(info.engines))
    if info.processes:
        console.print(table)
    elif len(info.engines) < 2:
        console.print("no supervisor reports on the processes of this service", markup=False)
    num_blocks, num_free = info.limits.num_blocks, info.load.num_free_blocks
    reason = f" ({info.service_state_reason})" if info.service_state_reason else ""
    used = f"{num_blocks - num_free} of {num_blocks} KV blocks in use" if num_blocks else "no KV blocks yet"
    console.print(
        f"service {info.service_state.value}{reason}; {info.load.num_running} running, "
        f"{info.load.num_waiting} waiting, {used}; version {info.version}",
        markup=False,
        soft_wrap=True,
    )


def _engine_table(engines: Sequence[Engine]) -> Table:
    table = Table("engine", "incarnation", "state", "running", "waiting", "streams from here", "detail")
    for engine in engines:
        table.add_row(
            Text(engine.address),
            engine.scheduler_incarnation,
            Text(engine.state.value, style=_ENGINE_STYLES.get(engine.state, "")),
            str(engine.load.num_running),
            str(engine.load.num_waiting),
            str(engine.num_streams),
            Text(engine.detail),
        )
    return table


def _age(process: Process) -> str:
    return "" if process.last_step_age_s is None else f"{process.last_step_age_s:.1f} s"
