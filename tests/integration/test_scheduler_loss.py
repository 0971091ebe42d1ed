"""Do streams outlive kill -9 of the scheduler, while the workers go on, and of a worker, to the last bit?"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from pagewire_client import Client, LocalService
from tests.fakes.mixed_streams import GOLDEN, GREEDY, run_streams
from tests.fakes.patience import PATIENCE_S, PATIENT
from tests.fakes.service_processes import child, wait_for_child

pytestmark = pytest.mark.model

FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning"]
SCHEDULER = "scheduler_service.core"


@pytest.fixture(scope="module")
def service(demo_model):
    with LocalService(str(demo_model), flags=FLAGS) as running:
        running.wait_until_ready(PATIENCE_S)
        yield running


@pytest.fixture
def client(service):
    with Client(service.addresses[0], retry=PATIENT) as connected:
        connected.wait_until_ready(PATIENCE_S)
        yield connected


def test_sixteen_streams_outlive_two_schedulers(service, client):
    worker = child(service, "gpu_worker")
    expected = run_streams(client)
    completions = run_streams(client, (3, 10), lambda: child(service, SCHEDULER).kill())
    for completion, wanted in zip(completions, expected, strict=True):
        assert completion.token_ids == wanted.token_ids
        assert completion.text == wanted.text
        assert completion.choices == wanted.choices
        assert completion.prompt_logprobs == wanted.prompt_logprobs
        assert completion.usage.num_prompt_tokens == wanted.usage.num_prompt_tokens
        assert completion.usage.num_output_tokens == wanted.usage.num_output_tokens
    assert {completion.choices[0].matched for completion in completions} > {None}
    assert child(service, "gpu_worker").pid == worker.pid
    assert list(client.generate(GOLDEN[0]["prompt_ids"], GREEDY).token_ids) == GOLDEN[0]["output_ids"]


def test_a_prefill_outlives_its_scheduler_and_says_what_was_cached(service, client):
    case = next(case for case in GOLDEN if len(case["prompt_ids"]) > 400)
    short = dataclasses.replace(GREEDY, max_tokens=12)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.generate, case["prompt_ids"], short)
        while client.server_info().load.num_running == 0 and not running.done():
            time.sleep(0.001)
        child(service, SCHEDULER).kill()
        completion = running.result(PATIENCE_S)
    assert list(completion.token_ids) == case["output_ids"][:12]
    warm = client.generate(case["prompt_ids"], short).usage
    with client.stream(case["prompt_ids"], short) as stream:
        next(stream)
        child(service, SCHEDULER).kill()
        assert stream.collect().usage == warm
    assert warm.num_cached_tokens > 0


def test_a_stream_outlives_one_scheduler_after_another(service, client):
    worker = child(service, "gpu_worker")
    long = dataclasses.replace(GREEDY, max_tokens=400)
    with client.stream(GOLDEN[0]["prompt_ids"], long) as stream:
        for _ in range(3):
            next(stream)
            old = child(service, SCHEDULER)
            old.kill()
            wait_for_child(service, SCHEDULER, old.pid)
        completion = stream.collect()
    assert completion.choices == client.generate(GOLDEN[0]["prompt_ids"], long).choices
    assert list(completion.token_ids)[:64] == GOLDEN[0]["output_ids"]
    assert child(service, "gpu_worker").pid == worker.pid


def test_sixteen_streams_outlive_the_worker_with_all_their_log_probabilities(service, client):
    expected = run_streams(client)
    completions = run_streams(client, (5,), lambda: child(service, "gpu_worker").kill())
    assert [completion.choices for completion in completions] == [wanted.choices for wanted in expected]
    assert [c.prompt_logprobs for c in completions] == [wanted.prompt_logprobs for wanted in expected]


def test_processes_left_are_those_that_should_be(service):
    assert len(psutil.Process(service._process.pid).children()) == 3
