"""A request that kills the worker: it fails alone, with a reason, and all others get their tokens."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pagewire_client import Client, Completion, InternalError, LocalService, RequestError, SamplingParams, local_service
from tests.chaos.service import wait_until
from tests.fakes.patience import PATIENCE_S, PATIENT

pytestmark = pytest.mark.model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
POISON = 31_337
NUM_STREAMS = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
FLAGS = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning"]


@pytest.fixture
def poisoned(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A service whose workers die of a token id."""
    monkeypatch.setenv("PAGEWIRE_TEST_POISON", str(POISON))
    monkeypatch.setenv("PAGEWIRE_TEST_DEATHS", str(tmp_path / "deaths"))
    monkeypatch.setattr(local_service, "_SUPERVISOR", ("tests.fakes.poisoned_service",))
    with LocalService(str(demo_model), flags=FLAGS) as service:
        service.wait_until_ready(PATIENCE_S)
        with Client(service.addresses[0], retry=PATIENT) as client:
            yield client


def test_a_poisonous_request_fails_alone_and_costs_three_restarts(poisoned: Client, tmp_path: Path) -> None:
    cases = sorted(GOLDEN, key=lambda case: len(case["prompt_ids"]))[:NUM_STREAMS]
    assert all(POISON not in case["prompt_ids"] + case["output_ids"] for case in cases)
    prompts = [case["prompt_ids"] for case in cases]
    prompts[5] = [*prompts[5][:3], POISON, *prompts[5][3:]]

    def run(prompt: list[int]) -> Completion | RequestError:
        try:
            return poisoned.generate(prompt, GREEDY)
        except RequestError as error:
            return error

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        results = list(pool.map(run, prompts))
    failed = results.pop(5)
    del cases[5]
    assert isinstance(failed, InternalError)
    assert "the worker died three times while it computed this request" in str(failed)
    assert [isinstance(result, Completion) and list(result.token_ids) for result in results] == [
        case["output_ids"] for case in cases
    ]
    deaths = (tmp_path / "deaths").read_text().splitlines()
    assert len(deaths) == 3
    assert deaths[-1].endswith(" 1 sequences")
    limit = poisoned.server_info().limits.num_blocks
    wait_until(lambda: poisoned.server_info().load.num_free_blocks == limit, PATIENCE_S, "blocks are leaked")
