"""Does `LLM` start, use and end a private service? A fake gateway answers under the real supervisor."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from pagewire.v1 import generate_pb2
from pagewire_client import (
    LLM,
    AsyncClient,
    InvalidArgumentError,
    LocalService,
    SamplingParams,
    ServiceStartError,
    local_service,
)
from pagewire_client.batch import Job, run_jobs
from pagewire_client.local_service import flags_from
from tests.fakes.fake_gateway import FakeGateway, FakeService
from tests.fakes.patience import PATIENCE_S
from tests.fakes.service_processes import left_of

FAKE = ("tests.fakes.supervised", "[]")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file that passes for a model, with fake processes to serve it."""
    monkeypatch.setattr(local_service, "_SUPERVISOR", FAKE)
    monkeypatch.setattr(local_service, "_STOP_S", PATIENCE_S)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def llm(model):
    with LLM(model) as engine:
        yield engine


def family():
    """This process's descendants."""
    return psutil.Process().children(recursive=True)


def test_outputs_are_in_prompt_order_and_of_both_shapes(llm):
    prompts = [[1] * length for length in range(1, 301)]
    params = [SamplingParams(max_tokens=1 + index % 7) for index in range(300)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + index % 7 for index in range(300)]
    assert outputs[1].outputs[0].text == outputs[1]["text"] == "t0 t1 "
    assert outputs[1].outputs[0].token_ids == outputs[1]["token_ids"] == [0, 1]
    assert (outputs[1].outputs[0].finish_reason, outputs[1].finished) == ("length", True)
    with pytest.raises(KeyError):
        outputs[1]["other"]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("ab", [("ab", [97, 98])]),
        (["a", "b"], [("a", [97]), ("b", [98])]),
        ([5, 6], [(None, [5, 6])]),
        ({"prompt": "a"}, [("a", [97])]),
        ([{"prompt_token_ids": [7]}, {"prompt": "a"}], [(None, [7]), ("a", [97])]),
        ([], []),
    ],
)
def test_prompts_of_every_shape(llm, prompts, expected):
    outputs = llm.generate(prompts, use_tqdm=False)
    assert [(output.prompt, output.prompt_token_ids) for output in outputs] == expected


def test_requests_ask_for_their_output_at_the_end_and_keep_their_salt():
    with FakeGateway(FakeService()) as gateway:
        asyncio.run(run_two_jobs(gateway.address))
    kinds = {request.output.kind for request in gateway.service.requests}
    assert kinds == {generate_pb2.OUTPUT_KIND_FINAL_ONLY}
    assert {request.cache_salt for request in gateway.service.requests} == {"", "s"}


async def run_two_jobs(address):
    async with AsyncClient(address) as client:
        jobs = [Job([1], SamplingParams()), Job([2], SamplingParams(), cache_salt="s")]
        await run_jobs(client, jobs, lambda count: None, lambda: None)


def test_chat_takes_one_conversation_or_several(llm):
    turn = {"role": "user", "content": "hi"}
    assert [o.prompt_token_ids for o in llm.chat([turn], use_tqdm=False)] == [list(b"user:hi\n")]
    assert len(llm.chat([[turn], [turn, turn]], use_tqdm=False)) == 2


def test_a_wrong_number_of_parameters_is_refused(llm):
    with pytest.raises(ValueError, match="2 prompts need as many"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_a_failed_request_is_raised_and_the_service_lives_on(llm):
    with pytest.raises(InvalidArgumentError):
        llm.generate([[1], [0xBAD]], use_tqdm=False)
    assert len(llm.generate([[1]], use_tqdm=False)) == 1


def test_close_ends_every_process(model):
    before = family()
    llm = LLM(model)
    started = [process for process in family() if process not in before]
    assert len(started) == 2
    llm.close()
    llm.close()
    assert not any(process.is_running() for process in started)


def test_a_forgotten_engine_ends_with_its_last_reference(model):
    before = family()
    llm = LLM(model)
    started = [process for process in family() if process not in before]
    del llm
    gc.collect()
    assert not any(process.is_running() for process in started)


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)", "raise SystemExit(3)"])
def test_no_process_outlives_the_program(model, ending):
    program = f"""
        import os
        from pagewire_client import LLM, local_service
        import psutil
        local_service._SUPERVISOR = {FAKE!r}
        llm = LLM({model!r})
        print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
        {ending}
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    processes = []
    for pid in done.stdout.split():
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(int(pid)))
    assert len(done.stdout.split()) == 2
    assert left_of(processes) == []


def test_a_forked_copy_does_not_end_the_service(llm):
    pid = os.fork()
    if pid == 0:
        llm._service.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(llm.generate([[1]], use_tqdm=False)) == 1


def test_a_model_that_does_not_exist_is_said(model):
    with pytest.raises(ServiceStartError, match=r"there is no model at /no/such.gguf"):
        LLM("/no/such.gguf")


def test_an_unknown_engine_argument_is_said(model):
    with pytest.raises(ServiceStartError, match="exit status 2"):
        LLM(model, no_such_flag=1)


def test_a_start_that_takes_too_long_is_given_up(model):
    service = LocalService(model)
    with pytest.raises(ServiceStartError, match="not ready after 0 s"):
        service.wait_until_ready(timeout_s=0.0)
    assert service.wait() in (0, -signal.SIGTERM)


def test_engine_arguments_become_flags():
    assert flags_from({"max_num_seqs": 8, "enable_prefix_caching": False, "async_scheduling": True, "seed": None}) == [
        "--max-num-seqs",
        "8",
        "--no-prefix-caching",
        "--async-scheduling",
    ]
