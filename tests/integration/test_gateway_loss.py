"""Do streams outlive kill -9 of a gateway: through the library, and through plain gRPC?"""

import asyncio
import dataclasses
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pagewire.v1 import generate_pb2
from pagewire_client import AsyncClient, Client, LocalService, SamplingParams
from pagewire_client.batch import Job, run_jobs
from tests.fakes.mixed_streams import GOLDEN, GREEDY, run_streams
from tests.fakes.patience import PATIENCE_S, PATIENT
from tests.fakes.service_processes import child, children

pytestmark = pytest.mark.model

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "recovery.md"
LONG = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning", "--gateways", "2"]


@pytest.fixture(scope="module")
def service(demo_model):
    with LocalService(str(demo_model), flags=[*FLAGS, "--orphan-grace-s", "3", "--drain-timeout", "0.3"]) as running:
        running.wait_until_ready(PATIENCE_S)
        yield running


@pytest.fixture
def client(service):
    with Client(",".join(service.addresses), retry=PATIENT) as connected:
        wait_until_all_serve(service)
        yield connected


def wait_until_all_serve(service: LocalService) -> None:
    for address in service.addresses:
        with Client(address) as one:
            one.wait_until_ready(PATIENCE_S)


def test_sixteen_streams_outlive_one_of_two_gateways(service, client):
    expected = run_streams(client)
    gateway = children(service, "scheduler_service.gateway")[0]
    completions = run_streams(client, (3,), gateway.kill)
    assert [completion.choices for completion in completions] == [wanted.choices for wanted in expected]
    assert [c.prompt_logprobs for c in completions] == [wanted.prompt_logprobs for wanted in expected]
    assert [c.usage.num_output_tokens for c in completions] == [c.usage.num_output_tokens for c in expected]


def test_streams_outlive_a_gateway_and_then_the_scheduler(service, client):
    case = GOLDEN[0]
    with client.stream(case["prompt_ids"], GREEDY) as stream:
        next(stream)
        for gateway in children(service, "scheduler_service.gateway"):
            gateway.kill()
        next(stream)
        child(service, "scheduler_service.core").kill()
        completion = stream.collect()
    assert list(completion.token_ids) == case["output_ids"]


def test_a_batch_that_has_no_output_yet_outlives_all_gateways(service, client):
    cases = GOLDEN[:6]
    # The load is told once a second: it must last longer.
    long = dataclasses.replace(GREEDY, max_tokens=256)

    async def run():
        async with AsyncClient(",".join(service.addresses), retry=PATIENT) as one:
            jobs = [Job(case["prompt_ids"], long) for case in cases]
            return await run_jobs(one, jobs, lambda count: None, lambda: None)

    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(asyncio.run, run())
        while client.server_info().load.num_running < len(cases):
            assert not batch.done()
        for gateway in children(service, "scheduler_service.gateway"):
            gateway.kill()
        outputs = batch.result(PATIENCE_S)
    assert [output.outputs[0].token_ids[:64] for output in outputs] == [case["output_ids"] for case in cases]


def test_streams_outlive_the_drain_timeout_of_their_gateway(service, client):
    gateways = children(service, "scheduler_service.gateway")
    expected = client.generate(GOLDEN[0]["prompt_ids"], LONG)
    with (
        client.stream(GOLDEN[0]["prompt_ids"], LONG) as first,
        client.stream(GOLDEN[0]["prompt_ids"], LONG) as second,
    ):
        calls = [first._call, second._call]
        next(first)
        next(second)
        gateways[0].terminate()
        with ThreadPoolExecutor(2) as threads:
            completions = list(threads.map(lambda stream: stream.collect(), (first, second)))
        # The streams were at different gateways, one of which was drained.
        assert [stream._call is call for stream, call in zip((first, second), calls, strict=True)].count(False) == 1
    assert not gateways[0].is_running()
    for completion in completions:
        assert completion.choices == expected.choices
        assert completion.usage.num_output_tokens == expected.usage.num_output_tokens


def test_blocks_of_orphans_that_nobody_resumes_are_freed(service, client):
    before, first_step = client.server_info().limits.num_blocks, num_steps(client)
    endless = SamplingParams(max_tokens=2000, ignore_eos=True)
    with Client(service.addresses[0]) as leaving:
        streams = [leaving.stream(GOLDEN[n]["prompt_ids"][:50], endless) for n in range(4)]
        for stream in streams:
            next(stream)
        for gateway in children(service, "scheduler_service.gateway"):
            gateway.kill()
    wait_until_all_serve(service)
    while client.server_info().load.num_free_blocks != before:
        time.sleep(0.1)
    # They did not run to their end.
    assert num_steps(client) - first_step < 2000


def num_steps(client: Client) -> int:
    """Steps of the worker so far, once the supervisor has told a gateway of them."""
    while not (processes := client.server_info().processes):
        time.sleep(0.1)
    return next(process.num_steps for process in processes if process.name == "worker-0")


def test_a_plain_grpc_client_resumes_as_the_documentation_says(service, client):
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)[1], names)
    case = GOLDEN[1]
    request = generate_pb2.GenerateRequest(
        token_ids=generate_pb2.TokenIds(ids=case["prompt_ids"]),
        sampling=generate_pb2.SamplingParams(temperature=0.0),
        stopping=generate_pb2.StopConditions(max_tokens=64, ignore_eos=True),
    )
    expected = client.generate(case["prompt_ids"], GREEDY)
    texts = []
    for text in names["stream_text"](service.addresses, request):
        texts.append(text)
        if len(texts) == 5:
            for gateway in children(service, "scheduler_service.gateway"):
                gateway.kill()
    assert list(request.resume.received_token_ids) == case["output_ids"]
    assert "".join(texts) == expected.text
