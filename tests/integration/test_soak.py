"""Is anything left of requests in real gateway and scheduler processes, whatever their callers did? In short."""

import asyncio

import pytest
from rich.console import Console

from benchmarks.callers import KINDS
from benchmarks.soak import make_table, soak
from benchmarks.stub_service import StubService
from pagewire_client.progress import BatchProgress
from tests.fakes.patience import wait_until


@pytest.fixture
def service():
    with StubService(max_num_seqs=32, num_blocks=1024) as running:
        yield running


def test_nothing_is_left_of_two_thousand_requests(service, capfd):
    progress = BatchProgress(Console(), 2000, show=False)
    processes = (service.gateway, service.scheduler)
    asyncio.run(soak(service, 1000, 500, 16, seed=1, progress=progress))
    before = [(process.num_fds(), process.num_threads()) for process in processes]
    # Each part ends with an idle service whose blocks are all free.
    result = asyncio.run(soak(service, 1000, 500, 16, seed=2, progress=progress))
    assert result.kinds.keys() == KINDS.keys()
    assert len(result.samples) == 2
    # No descriptors or threads are left.
    wait_until(
        lambda: all(
            process.num_fds() <= num_fds + 2 and process.num_threads() <= num_threads + 2
            for process, (num_fds, num_threads) in zip(processes, before, strict=True)
        )
    )
    assert len(make_table(result.samples).rows) == 2
    out, err = capfd.readouterr()
    assert "ERROR" not in out + err, err
