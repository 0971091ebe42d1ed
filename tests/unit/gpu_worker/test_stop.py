"""A worker that is told to stop: at once, or when the scheduler that it computes for is gone."""

import signal
from pathlib import Path

import pytest

from gpu_worker.stop import Stop
from tests.fakes.bare_scheduler import BareScheduler
from tests.fakes.patience import PATIENCE_S
from tests.unit.gpu_worker.test_worker import ENGINE, Service, finish, start_worker
from tests.unit.gpu_worker.tiny_checkpoint import write_checkpoint

TERM, INT = signal.SIGTERM, signal.SIGINT


def draining(timeout_s: float = 1000.0) -> Stop:
    stop = Stop(timeout_s)
    stop.is_computing = True
    stop.take_signal(TERM, None)
    return stop


def test_who_was_not_told_goes_on_without_a_scheduler() -> None:
    Stop(1000.0).check(has_scheduler=False)


def test_one_goes_on_while_there_is_a_scheduler() -> None:
    stop = draining()
    stop.check(has_scheduler=True)
    with pytest.raises(SystemExit):
        stop.check(has_scheduler=False)


def test_one_does_not_go_on_for_ever() -> None:
    with pytest.raises(SystemExit):
        draining(1e-9).check(has_scheduler=True)


@pytest.mark.parametrize("second", [TERM, INT])
def test_a_second_signal_ends_it(second: signal.Signals) -> None:
    stop = draining()
    with pytest.raises(SystemExit):
        stop.take_signal(second, None)


@pytest.mark.parametrize(
    ("timeout_s", "is_computing", "signum"), [(0.0, True, TERM), (1000.0, False, TERM), (1000.0, True, INT)]
)
def test_one_stops_at_once_without_time_while_it_starts_and_when_interrupted(
    timeout_s: float, is_computing: bool, signum: signal.Signals
) -> None:
    stop = Stop(timeout_s)
    stop.is_computing = is_computing
    with pytest.raises(SystemExit):
        stop.take_signal(signum, None)


def test_worker_computes_for_a_scheduler_that_drains(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    address = f"ipc://{tmp_path}/workers"
    flags = ["--drain-timeout", str(10 * PATIENCE_S), "--model", str(tmp_path / "model")]
    process = start_worker(*flags, "--scheduler-address", address)
    service = Service(address, process, model)
    with BareScheduler(address) as scheduler:
        scheduler.start(ENGINE)
        process.send_signal(TERM)
        service.check_answer(scheduler)
    assert finish(process) == (0, [])
