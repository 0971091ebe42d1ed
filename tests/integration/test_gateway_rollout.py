"""Do callers find other gateways when theirs goes, with a word or without one?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pagewire.ipc.requests import Submit
from pagewire_client import Client, SamplingParams
from tests.fakes.counting_proxy import CountingProxy
from tests.fakes.fake_scheduler import FakeScheduler, stop_at_length
from tests.fakes.free_port import free_port
from tests.fakes.gateway_process import GatewayProcess
from tests.fakes.name_server import NameServer
from tests.fakes.patience import PATIENCE_S, wait_until
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[FakeScheduler]:
    with FakeScheduler(f"ipc://{tmp_path}/s") as fake:
        yield fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_a_gateway_that_drains_sends_its_callers_elsewhere_and_ends_its_streams(scheduler, model, tmp_path):
    """Behind one address, as that of a Kubernetes service, which leads new connections to other gateways."""
    patient = ("--drain-timeout", str(PATIENCE_S))
    with (
        GatewayProcess(model, scheduler.address, tmp_path / "old", *patient) as old,
        GatewayProcess(model, scheduler.address, tmp_path / "new") as new,
        CountingProxy(old.address) as service,
    ):
        old.wait_until_serving()
        new.wait_until_serving()
        with Client(service.address) as client, Client(new.address) as direct:
            stream = client.stream([1], SamplingParams(max_tokens=2))
            submit = scheduler.take(Submit)
            scheduler.send_tokens([(submit.stream_id, 5)])
            assert next(stream).token_ids == (5,)
            service.target = new.address
            old.process.terminate()
            successor = direct.server_info().gateway_incarnation
            wait_until(lambda: client.server_info().gateway_incarnation == successor)
            assert old.process.poll() is None
            scheduler.send_tokens([(submit.stream_id, 6)], stop_at_length(submit.stream_id))
            assert stream.collect().token_ids == (5, 6)
            assert old.process.wait(PATIENCE_S) == 0


def test_gateways_that_replace_each_other_quickly_are_found_by_their_name(scheduler, model, tmp_path):
    hosts, port = ("127.0.0.1", "127.0.0.2", "127.0.0.3"), free_port()
    with NameServer(hosts[0]) as names, Client(f"dns://{names.address}/pagewire.test:{port}") as client:
        for host in hosts:
            listen = ("--listen", f"{host}:{port}")
            with GatewayProcess(model, scheduler.address, tmp_path / host, *listen) as gateway:
                names.addresses = (host,)
                gateway.wait_until_serving()
                assert client.server_info().gateway_incarnation


def test_a_stream_is_resumed_when_its_gateway_vanishes_without_a_word(scheduler, model, tmp_path):
    with (
        GatewayProcess(model, scheduler.address, tmp_path / "a") as lost,
        GatewayProcess(model, scheduler.address, tmp_path / "b") as other,
        CountingProxy(lost.address) as way,
    ):
        lost.wait_until_serving()
        other.wait_until_serving()
        with ThreadPoolExecutor(1) as threads, Client(f"{way.address},{other.address}") as client:
            # They take turns, and the stream's is that of the first.
            while way.num_connections == 0:
                client.server_info()
            client.server_info()
            stream = client.stream([1], SamplingParams(max_tokens=2), timeout=PATIENCE_S)
            submit = scheduler.take(Submit)
            scheduler.send_tokens([(submit.stream_id, 5)])
            assert next(stream).token_ids == (5,)
            way.vanish()
            whole = threads.submit(stream.collect)
            again = scheduler.take_next(Submit)
            assert (again.request_id, again.resumes) == (submit.request_id, True)
            scheduler.send_tokens([(again.stream_id, 6)], stop_at_length(again.stream_id))
            assert whole.result(PATIENCE_S).token_ids == (5, 6)
