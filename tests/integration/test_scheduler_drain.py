"""A scheduler that is told to stop while it runs sequences: it finishes them, and takes no new ones."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagewire.ipc.requests import Abort, EngineState, RejectReason
from tests.fakes.bare_gateway import BareGateway, make_submit
from tests.fakes.patience import PATIENCE_S
from tests.fakes.scheduler_process import SchedulerProcess
from tests.fakes.step_executor import complete

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SchedulerProcess]:
    running = SchedulerProcess(tmp_path, "--orphan-grace-s", str(PATIENCE_S), "--drain-timeout", str(10 * PATIENCE_S))
    yield running
    running.close()


def wait_draining(gateway: BareGateway) -> None:
    gateway.wait(lambda: gateway.status is not None and gateway.status.state is EngineState.DRAINING)


def begin_drain(service: SchedulerProcess) -> BareGateway:
    """Streams 1 to 10 in 8 slots, held after five steps, and the word to stop."""
    service.worker().hold(after=5)
    gateway = service.gateway()
    gateway.wait_ready()
    for stream in range(1, 11):
        gateway.send(make_submit(stream, [stream, 2, 3], max_tokens=20))
    gateway.wait(lambda: len(gateway.tokens[1]) > 1 and len(gateway.accepted) == 10)
    service.process.send_signal(TERM)
    wait_draining(gateway)
    return gateway


def test_running_and_waiting_sequences_end_as_ever_and_new_ones_are_refused(service: SchedulerProcess) -> None:
    gateway = begin_drain(service)
    assert gateway.status is not None
    assert gateway.status.model is not None
    assert "finishes what it has" in gateway.status.detail
    gateway.send(make_submit(20, [1, 2]))
    gateway.send(make_submit(21, [1, 2], resumes=True))
    gateway.wait(lambda: {20, 21} <= gateway.rejected.keys())
    assert gateway.rejected[20].reason is RejectReason.UNAVAILABLE
    assert "takes no new requests; send the request to another one" in gateway.rejected[20].message
    late = service.gateway()
    wait_draining(late)
    service.workers[0].go_on()
    gateway.wait(lambda: len(gateway.ended) == 10)
    for stream in range(1, 11):
        assert gateway.tokens[stream] == complete([stream, 2, 3], 20)
    assert service.process.wait(PATIENCE_S) == 0


def test_what_was_accepted_elsewhere_goes_on_here(service: SchedulerProcess) -> None:
    gateway = begin_drain(service)
    gateway.send(make_submit(20, [1, 2], was_accepted=True))
    service.workers[0].go_on()
    gateway.wait(lambda: len(gateway.ended) == 11)
    assert gateway.tokens[20] == complete([1, 2], 8)


def test_it_stops_at_once_without_sequences(service: SchedulerProcess) -> None:
    service.worker()
    gateway = service.gateway()
    gateway.wait_ready()
    service.process.send_signal(TERM)
    assert service.process.wait(PATIENCE_S) == 0


def test_it_stops_at_once_while_it_starts(service: SchedulerProcess) -> None:
    service.process.send_signal(TERM)
    assert service.process.wait(PATIENCE_S) == 0


def test_it_stops_once_the_last_caller_has_left(service: SchedulerProcess) -> None:
    gateway = begin_drain(service)
    gateway.send(Abort(tuple(range(1, 11))))
    assert service.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("second", [TERM, INT])
def test_a_second_signal_ends_the_drain(service: SchedulerProcess, second: signal.Signals) -> None:
    begin_drain(service)
    service.process.send_signal(second)
    assert service.process.wait(PATIENCE_S) == 0


def test_interrupt_does_not_drain(service: SchedulerProcess) -> None:
    service.worker().hold(after=5)
    gateway = service.gateway()
    gateway.wait_ready()
    gateway.send(make_submit(1, [1, 2, 3], max_tokens=20))
    gateway.wait(lambda: len(gateway.tokens[1]) > 1)
    service.process.send_signal(INT)
    assert service.process.wait(PATIENCE_S) == 0


def test_it_stops_when_its_time_is_over(tmp_path: Path) -> None:
    service = SchedulerProcess(tmp_path, "--drain-timeout", "0.3")
    try:
        begin_drain(service)
        assert service.process.wait(PATIENCE_S) == 0
        assert service.process.stderr is not None
        assert "its time of 0.3 s is over, and 10 sequences have to go on elsewhere" in service.process.stderr.read()
    finally:
        service.close()


def test_it_stops_when_a_worker_is_lost(service: SchedulerProcess) -> None:
    begin_drain(service)
    service.stop(service.workers[0])
    assert service.process.wait(PATIENCE_S) == 0
    assert service.process.stderr is not None
    assert "workers are gone, and 10 sequences" in service.process.stderr.read()


def test_orphans_can_be_resumed_and_are_waited_for(service: SchedulerProcess) -> None:
    gateway = begin_drain(service)
    gateway.send(Abort(tuple(range(2, 11))))
    received = gateway.tokens[1][:2]
    other = service.gateway()
    wait_draining(other)
    gateway.close()
    resume = make_submit(7, [1, 2, 3, *received], request_id="r1", num_prompt_tokens=3, max_tokens=20, resumes=True)
    other.send(resume)
    service.workers[0].go_on()
    other.wait(lambda: 7 in other.ended)
    assert received + other.tokens[7] == complete([1, 2, 3], 20)
    assert service.process.wait(PATIENCE_S) == 0
