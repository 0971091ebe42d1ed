"""One run of the service, from a model spec to the last process gone."""

import asyncio
import dataclasses
import logging
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from scheduler_service.supervisor.child import ChildSpec
from scheduler_service.supervisor.children import ServiceConfig, private_address, service_children
from scheduler_service.supervisor.events import EventPipe
from scheduler_service.supervisor.listen import check_addresses
from scheduler_service.supervisor.model_source import ModelSource, resolve_model
from scheduler_service.supervisor.output import Output
from scheduler_service.supervisor.preflight import check_packages
from scheduler_service.supervisor.probe import Probe
from scheduler_service.supervisor.run_dir import private_run_dir
from scheduler_service.supervisor.stop import Stop
from scheduler_service.supervisor.supervisor import Supervisor, Timing

logger = logging.getLogger(__name__)

MakeChildren = Callable[[ServiceConfig, ModelSource, Path], Sequence[ChildSpec]]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the service finds around it."""

    output: Output
    events: EventPipe | None
    cache_dir: Path
    run_dir_parent: Path | None
    timing: Timing


async def serve(
    spec: str,
    model_name: str | None,
    config: ServiceConfig,
    around: Surroundings,
    make_children: MakeChildren = service_children,
) -> None:
    """Run the service until a stop signal (a second one kills at once) or until the event pipe's reader is gone.

    SIGTERM and SIGHUP let open streams end first; SIGINT and a reader that is gone cut them.

    Raises:
        ServiceError: it cannot start or go on.
    """
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.request, number == signal.SIGINT)
    if around.events is not None:
        around.events.watch_reader(loop, partial(stop.request, is_quick=True))
    check_packages()
    check_addresses(
        [*config.listen, *([config.http] if config.http is not None else [])],
        config.num_gateways,
        [config.health_listen] if config.health_listen is not None else [],
        shares_port=config.shares_port,
    )
    model = await _until_stopped(spec, around, stop)
    if model is None:
        return
    model = dataclasses.replace(model, name=model_name or model.name)
    with private_run_dir(around.run_dir_parent) as run_dir:
        children = make_children(config, model, run_dir)
        await _run(model, children, private_address(run_dir), config.http_scheme, around, stop)


async def _run(
    model: ModelSource, children: Sequence[ChildSpec], private: str, scheme: str, around: Surroundings, stop: Stop
) -> None:
    def announce(addresses: list[str], http_addresses: list[str]) -> None:
        urls = [f"{scheme}://{address}" for address in http_addresses]
        openai = f" openai={','.join(f'{url}/v1' for url in urls)}" if urls else ""
        logger.info("serving model=%s addresses=%s%s", model.name, ",".join(addresses), openai)
        if around.events is not None:
            around.events.ready(model.name, addresses, urls)

    def stop_or_kill(number: int) -> None:
        if stop.is_set:
            supervisor.kill()
        stop.request(is_quick=number == signal.SIGINT)

    async with Probe(private) as probe:
        supervisor = Supervisor(children, probe, around.output, announce, around.timing)
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop_or_kill, number)
        await supervisor.run(stop)


async def _until_stopped(spec: str, around: Surroundings, stop: Stop) -> ModelSource | None:
    """Resolve the model; None if told to stop first, which a download cannot hold up."""
    with _scratch_dir(around.cache_dir) as scratch_dir:
        resolving = _in_daemon_thread(
            lambda: resolve_model(spec, around.cache_dir, scratch_dir, around.output.progress)
        )
        stopping = asyncio.ensure_future(stop.wait())
        waiting: set[asyncio.Future[Any]] = {resolving, stopping}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        around.output.end_progress(is_done=not stop.is_set and resolving.exception() is None)
        return None if stop.is_set else resolving.result()


@contextmanager
def _scratch_dir(cache_dir: Path) -> Iterator[Path]:
    """Give a fresh path; whoever needs a directory there makes it, as most models need none."""
    path = cache_dir / f"tmp-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _in_daemon_thread(work: Callable[[], _Result]) -> "asyncio.Future[_Result]":
    """Run blocking work in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def run() -> None:
        # The loop is closed, and nobody waits any more, if the service was stopped meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_outcome(work, future))

    threading.Thread(target=run, name="resolve-model", daemon=True).start()
    return future


def _outcome(work: Callable[[], _Result], future: "asyncio.Future[_Result]") -> Callable[[], None]:
    """Do the work here; gives what settles the future in its own thread."""
    try:
        result = work()
    except Exception as error:
        return partial(future.set_exception, error)
    return partial(future.set_result, result)
