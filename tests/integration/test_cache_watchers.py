"""Does the scheduler stop to note what is cached once its last watcher has left, with a word or without?"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagewire.ipc.cache_events import WatchCache
from pagewire.ipc.requests import Goodbye
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.loop import SchedulerLoop
from tests.fakes.bare_gateway import BareGateway, make_submit
from tests.fakes.fake_worker import FakeWorker
from tests.fakes.patience import PATIENCE_S


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[SchedulerLoop]:
    running = SchedulerLoop(SchedulerConfig(block_size=4), f"ipc://{tmp_path}/requests", f"ipc://{tmp_path}/workers")
    thread = threading.Thread(target=running.run)
    thread.start()
    worker = FakeWorker(running.addresses[1])
    yield running
    worker.stop()
    running.stop()
    thread.join(PATIENCE_S)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def watcher(loop: SchedulerLoop) -> BareGateway:
    """A gateway that watches."""
    gateway = BareGateway(loop.addresses[0])
    gateway.wait_ready()
    assert not is_kept(loop)
    gateway.send(WatchCache(wanted=True))
    wait_for(lambda: is_kept(loop))
    return gateway


def is_kept(loop: SchedulerLoop) -> bool:
    assert loop._scheduler is not None
    return loop._scheduler.journal.is_kept


def test_a_watcher_who_wants_no_more_or_takes_leave_ends_it(loop: SchedulerLoop) -> None:
    for farewell in (WatchCache(wanted=False), Goodbye()):
        gateway = watcher(loop)
        gateway.send(farewell)
        wait_for(lambda: not is_kept(loop))
        gateway.close()


def test_a_watcher_who_is_gone_ends_it(loop: SchedulerLoop) -> None:
    watcher(loop).close()
    other = BareGateway(loop.addresses[0])
    other.wait_ready()
    other.send(make_submit(1, [1, 2, 3, 4, 5]))
    wait_for(lambda: not is_kept(loop))
    other.close()
