"""Is a full service honest about it at once, and does it keep what it accepted, even when its scheduler dies?"""

import dataclasses
import time
from contextlib import ExitStack

import grpc
import pytest

from pagewire_client import Client, LocalService, ResourceExhaustedError, RetryPolicy, SamplingParams
from tests.fakes.mixed_streams import GOLDEN, GREEDY
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import child

pytestmark = pytest.mark.model

FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning"]
LONG = SamplingParams(temperature=0.0, max_tokens=1000, ignore_eos=True)


@pytest.fixture(scope="module")
def service(demo_model):
    flags = [*FLAGS, "--max-num-seqs", "1", "--max-waiting-requests", "2"]
    with LocalService(str(demo_model), flags=flags) as running:
        running.wait_until_ready(PATIENCE_S)
        yield running


@pytest.fixture
def client(service):
    with Client(service.addresses[0], retry=RetryPolicy(max_attempts=1)) as connected:
        wait_for_load(connected, 0, 0)
        yield connected


def wait_for_load(client: Client, num_running: int, num_waiting: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        load = client.server_info().load
        if (load.num_running, load.num_waiting) == (num_running, num_waiting):
            return
        assert time.monotonic() < deadline_s, f"the load is {load}"


def open_streams(client: Client, stack: ExitStack, first: SamplingParams) -> list:
    """One that runs, then two that wait."""
    streams = [stack.enter_context(client.stream(GOLDEN[0]["prompt_ids"], first))]
    next(streams[0])
    for case in GOLDEN[1:3]:
        streams.append(stack.enter_context(client.stream(case["prompt_ids"], GREEDY)))
    wait_for_load(client, 1, 2)
    return streams


def test_a_full_queue_refuses_at_once_and_says_why(client, service):
    with ExitStack() as stack:
        open_streams(client, stack, LONG)
        with pytest.raises(ResourceExhaustedError) as caught:
            client.generate(GOLDEN[3]["prompt_ids"], GREEDY)
        error = caught.value
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details.reason == "ENGINE_OVERLOADED"
        assert 0 < error.details.retry_delay_s <= 60
        assert error.message == "the queue is full: 2 requests wait, and 2 may"
    patient = RetryPolicy(max_attempts=100)
    with ExitStack() as stack, Client(service.addresses[0], retry=patient) as other:
        short = dataclasses.replace(LONG, max_tokens=60)
        streams = open_streams(client, stack, short)
        assert list(other.generate(GOLDEN[3]["prompt_ids"], GREEDY).token_ids) == GOLDEN[3]["output_ids"]
        for stream, case in zip(streams[1:], GOLDEN[1:3], strict=True):
            assert list(stream.collect().token_ids) == case["output_ids"]


def test_what_was_accepted_outlives_the_scheduler_though_the_queue_was_full(client, service):
    with ExitStack() as stack:
        streams = open_streams(client, stack, GREEDY)
        child(service, "scheduler_service.core").kill()
        for stream, case in zip(streams, GOLDEN[:3], strict=True):
            assert list(stream.collect().token_ids) == case["output_ids"]
