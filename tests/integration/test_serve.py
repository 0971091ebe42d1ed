"""Does the whole stack work as one: real gateway, scheduler and worker under the supervisor, on the demo model?"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pagewire_client import LLM, Client, FinishReason, LocalService, SamplingParams, ServiceStartError
from tests.fakes.patience import PATIENCE_S, PATIENT
from tests.fakes.service_processes import child, left_of

pytestmark = pytest.mark.model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
SMALL = ["--cpu-memory-gib", "0.5", "--threads", "1", "--log-level", "warning"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)


@pytest.fixture(scope="module")
def service(demo_model):
    """A service on a private socket, shared by tests that leave it as they find it."""
    with LocalService(str(demo_model), flags=SMALL) as running:
        running.wait_until_ready(PATIENCE_S)
        yield running


@pytest.fixture
def client(service):
    with Client(service.addresses[0], retry=PATIENT) as connected:
        connected.wait_until_ready(PATIENCE_S)
        yield connected


def test_chat_answers_and_counts(client):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    completion = client.generate(question, SamplingParams(temperature=0.0, max_tokens=32))
    assert "Paris" in completion.text
    assert completion.finish_reason is FinishReason.STOP
    assert completion.usage.num_prompt_tokens == len(client.tokenize(question).token_ids)
    assert completion.usage.num_output_tokens == len(completion.token_ids)


def test_stream_is_the_same_as_the_whole(client):
    whole = client.generate("Once upon a time", SamplingParams(seed=5, max_tokens=40))
    with client.stream("Once upon a time", SamplingParams(seed=5, max_tokens=40)) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [t for chunk in chunks for t in chunk.token_ids] == list(whole.token_ids)


def test_models_and_server_info(client):
    (model,) = client.list_models()
    assert (model.name, model.architecture, model.has_chat_template) == ("SmolLM2-135M-Instruct.Q4_1", "llama", True)
    info = client.server_info()
    assert info.limits.max_model_len == model.max_model_len
    assert info.limits.num_blocks >= info.load.num_free_blocks > 0


def test_golden_tokens_through_the_whole_stack(demo_model):
    cases = sorted(GOLDEN, key=lambda case: len(case["prompt_ids"]))[:12]
    with LLM(str(demo_model), cpu_memory_gib=0.5, threads=1, max_num_seqs=8, max_num_batched_tokens=64) as llm:
        outputs = llm.generate([case["prompt_ids"] for case in cases], GREEDY, use_tqdm=False)
    assert [output["token_ids"] for output in outputs] == [case["output_ids"] for case in cases]


def test_a_stream_outlives_its_worker(service, client):
    case = GOLDEN[0]
    with client.stream(case["prompt_ids"], GREEDY) as stream:
        next(stream)
        child(service, "gpu_worker").kill()
        completion = stream.collect()
    assert list(completion.token_ids) == case["output_ids"]


def test_a_stream_outlives_one_of_several_ranks_and_they_outlive_a_scheduler(demo_model):
    """The other rank dies too, and both start again. A new scheduler takes them as they are."""
    case = GOLDEN[0]
    with LocalService(str(demo_model), flags=["--tensor-parallel-size", "2", *SMALL]) as service:
        service.wait_until_ready(PATIENCE_S)
        with Client(service.addresses[0], retry=PATIENT) as client:
            old = [child(service, f"--rank {rank}") for rank in (0, 1)]
            with client.stream(case["prompt_ids"], GREEDY) as stream:
                next(stream)
                old[1].kill()
                completion = stream.collect()
            assert list(completion.token_ids) == case["output_ids"]
            assert left_of(old) == []
            ranks = [child(service, f"--rank {rank}") for rank in (0, 1)]
            child(service, "scheduler_service.core").kill()
            client.wait_until_ready(PATIENCE_S)
            again = client.generate(case["prompt_ids"], dataclasses.replace(GREEDY, max_tokens=8))
            assert list(again.token_ids) == case["output_ids"][:8]
            assert all(rank.is_running() for rank in ranks)


def test_a_stream_outlives_its_gateway(service, client):
    case = GOLDEN[0]
    with client.stream(case["prompt_ids"], GREEDY) as stream:
        next(stream)
        child(service, "scheduler_service.gateway").kill()
        completion = stream.collect()
    assert list(completion.token_ids) == case["output_ids"]


def test_a_truncated_model_is_said_in_one_line(demo_model, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(demo_model.read_bytes()[: 10 << 20])
    with pytest.raises(ServiceStartError, match=r"cannot start: .*cut\.gguf") as caught, LLM(str(path)):
        pass
    assert "\n" not in str(caught.value)


def test_serve_ask_once_answers_and_leaves_nothing(demo_model, tmp_path):
    command = [sys.executable, "-m", "pagewire_client", "serve", str(demo_model), "--listen", "127.0.0.1:0", *SMALL]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path), "--ask", "What is the capital of France?", "--once"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "WARNING" not in done.stderr
    assert not list(tmp_path.glob("pagewire-*"))


def test_no_process_survives_a_killed_supervisor(demo_model):
    service = LocalService(str(demo_model), flags=SMALL)
    service.wait_until_ready(PATIENCE_S)
    supervisor = psutil.Process(service._process.pid)
    processes = supervisor.children(recursive=True)
    assert len(processes) == 3
    supervisor.kill()
    assert left_of(processes) == []
    service.close()
