"""Do streams outlive kill -9 of the scheduler, token for token, while the workers go on?"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import psutil
import pytest

from pagewire_client import Client, LocalService, SamplingParams
from tests.fakes.mixed_streams import GOLDEN, GREEDY, run_streams
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import child, wait_for_child

pytestmark = pytest.mark.model

FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning"]
SCHEDULER = "scheduler_service.core"
# The demo model moves again within this time of the new scheduler's start.
MOST_RECOVERY_S = 1.0


@pytest.fixture(scope="module")
def service(demo_model):
    with LocalService(str(demo_model), flags=FLAGS) as running:
        running.wait_until_ready(PATIENCE_S)
        yield running


@pytest.fixture
def client(service):
    with Client(service.addresses[0]) as connected:
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


def test_streams_move_again_soon_after_the_new_schedulers_start(service, client, capsys):
    delays = []
    for _ in range(3):
        client.wait_until_ready(PATIENCE_S)
        with (
            ThreadPoolExecutor(1) as threads,
            client.stream(GOLDEN[0]["prompt_ids"], SamplingParams(temperature=0.0, max_tokens=400)) as stream,
        ):
            next(stream)
            old = child(service, SCHEDULER)
            start = threads.submit(lambda pid=old.pid: (wait_for_child(service, SCHEDULER, pid), time.monotonic())[1])
            old.kill()
            died_s = time.monotonic()
            times_s = [died_s]
            while not start.done() or times_s[-1] < start.result():
                next(stream)
                times_s.append(time.monotonic())
            delays.append((times_s[-1] - start.result(), times_s[-1] - died_s))
    with capsys.disabled():
        print(f"\nstreams moved so many seconds after (start, death): {[(f'{a:.2f}', f'{b:.2f}') for a, b in delays]}")
    assert median(since_start for since_start, _ in delays) < MOST_RECOVERY_S


def test_processes_left_are_those_that_should_be(service):
    assert len(psutil.Process(service._process.pid).children()) == 3
