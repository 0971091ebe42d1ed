"""The worker as a real process over real sockets, with a bare scheduler and a tiny random checkpoint."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker.__main__ import _config, _parse
from pagewire.ipc.codec import ANY, new_incarnation
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    LeftSequence,
    StepOutput,
    WorkerFailed,
    WorkerHello,
    WorkerLoaded,
    WorkerReady,
)
from tests.fakes.bare_scheduler import BareScheduler, int_bytes, make_added, make_step
from tests.fakes.patience import PATIENCE_S
from tests.unit.gpu_worker.tiny_checkpoint import MAX_MODEL_LEN, complete_greedily, write_checkpoint

ENGINE = EngineConfig(4, 4, 64, None, 64)
PROMPT = [5, 9, 30, 2, 77]
MANY = ["--tensor-parallel-size", "2"]


@dataclass
class Service:
    """A worker process, the address it looks for a scheduler at, and what it should compute."""

    address: str
    process: subprocess.Popen[str]
    model: PreTrainedModel

    def check_answer(self, scheduler: BareScheduler) -> None:
        """A fresh prompt gets the right tokens."""
        tokens = scheduler.step(make_step([1], [len(PROMPT)], [1], [make_added(1, PROMPT, [3, 0, 5])]))
        for _ in range(3):
            tokens += scheduler.step(make_step([1], [1], [1]))
        assert tokens == complete_greedily(self.model, PROMPT, 4)


SWALLOWING_TORCH = """
import os, sys, time
try:
    os.kill(os.getpid(), int(os.environ["SIGNAL_OF_TEST"]))
    time.sleep(1)
except BaseException:
    pass
print("gpu_worker: the stop was swallowed", file=sys.stderr)
"""


def start_worker(*flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gpu_worker", "--device", "cpu", "--threads", "1", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the lines on stderr that are no log lines."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, [line for line in errors.splitlines() if line.startswith("gpu_worker: ")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for most tests; each test is a new scheduler to it."""
    folder = tmp_path_factory.mktemp("worker")
    model = write_checkpoint(folder / "model")
    address = f"ipc://{folder}/workers"
    process = start_worker("--model", str(folder / "model"), "--scheduler-address", address)
    yield Service(address, process, model)
    process.terminate()
    assert finish(process) == (0, [])


@pytest.fixture
def scheduler(service: Service) -> Iterator[BareScheduler]:
    with BareScheduler(service.address) as running:
        yield running


def test_worker_says_who_it_is_and_what_it_loaded(service: Service, scheduler: BareScheduler) -> None:
    hello = scheduler.wait(WorkerHello)
    assert (hello.rank, hello.world_size, hello.pid) == (0, 1, service.process.pid)
    loaded = scheduler.start(ENGINE)
    assert loaded.rank == 0
    assert loaded.num_blocks == 64
    assert loaded.model.architecture == "LlamaForCausalLM"
    assert (loaded.model.vocab_size, loaded.model.max_model_len) == (101, MAX_MODEL_LEN)
    assert loaded.model.eos_token_ids == (2,)
    service.check_answer(scheduler)


def test_worker_keeps_its_weights_when_the_scheduler_is_replaced(service: Service) -> None:
    for _ in range(2):
        with BareScheduler(service.address) as scheduler:
            scheduler.start(ENGINE)
            service.check_answer(scheduler)
    assert [report for report in scheduler.progress if report.stage == "loading weights"] == []


def test_worker_follows_a_scheduler_that_wants_other_sizes(service: Service, scheduler: BareScheduler) -> None:
    loaded = scheduler.start(EngineConfig(16, 2, 32, 48, None))
    assert loaded.model.max_model_len == 48
    assert loaded.num_blocks == 2 * 48 // 16
    assert "loading weights" in {report.stage for report in scheduler.progress}
    service.check_answer(scheduler)


def test_worker_takes_its_configuration_twice(service: Service, scheduler: BareScheduler) -> None:
    """As when another rank was restarted: the group starts over, with empty slots."""
    scheduler.start(ENGINE)
    service.check_answer(scheduler)
    scheduler.start(ENGINE)
    service.check_answer(scheduler)


def test_worker_drops_what_is_not_for_it_and_goes_on(service: Service, scheduler: BareScheduler) -> None:
    scheduler.start(ENGINE)
    stray = make_step([2], [2], [1], [make_added(2, [1, 2], [0])], step_id=1)
    scheduler.send_frames(b"")
    scheduler.send_frames(b"PGW1 but not a message of ours")
    scheduler.send_frames(os.urandom(200))
    scheduler.send_frames(b"two", b"frames")
    scheduler.send(stray, recipient=new_incarnation())
    scheduler.send(stray, sender=new_incarnation())
    scheduler.send(WorkerFailed(0, "not meant for workers"))
    service.check_answer(scheduler)


def test_worker_drops_a_step_before_the_cache_is_allocated(service: Service, scheduler: BareScheduler) -> None:
    scheduler.wait(WorkerHello)
    scheduler.send(EngineConfig(8, 4, 64, None, 64))
    scheduler.send(make_step([0], [1], [1], [make_added(0, [1], [0])], step_id=5))
    scheduler.send(AllocateCache(scheduler.wait(WorkerLoaded).num_blocks))
    scheduler.wait(WorkerReady)
    service.check_answer(scheduler)


def test_two_steps_may_be_sent_before_the_first_is_answered(service: Service, scheduler: BareScheduler) -> None:
    scheduler.start(ENGINE)
    scheduler.send(make_step([0], [5], [1], [make_added(0, PROMPT, [0, 1])], step_id=7))
    scheduler.send(make_step([0], [1], [1], step_id=8))
    outputs = [scheduler.wait(StepOutput), scheduler.wait(StepOutput)]
    assert [output.step_id for output in outputs] == [7, 8]
    tokens = b"".join(output.token_ids for output in outputs)
    assert [int.from_bytes(tokens[i : i + 4], "little") for i in (0, 4)] == complete_greedily(service.model, PROMPT, 2)


def test_worker_greets_a_scheduler_that_comes_after_another(service: Service) -> None:
    with BareScheduler(service.address) as scheduler:
        scheduler.start(ENGINE)
    with BareScheduler(service.address) as scheduler:
        assert scheduler.wait(WorkerHello).pid == service.process.pid


def test_another_scheduler_finds_empty_slots(service: Service) -> None:
    for _ in range(2):
        with BareScheduler(service.address) as scheduler:
            scheduler.start(ENGINE)
            service.check_answer(scheduler)


def test_another_scheduler_is_told_what_the_blocks_hold(service: Service) -> None:
    prompt = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    added = make_added(1, prompt, [3, 1, 2])
    block_size = ENGINE.block_size
    with BareScheduler(service.address) as scheduler:
        scheduler.start(ENGINE)
        scheduler.step(make_step([1], [len(prompt)], [1], [msgspec.structs.replace(added, cache_salt="x")]))
    num_full = len(prompt) // block_size
    blocks = [3, 1, 2][:num_full]
    expected = LeftSequence(int_bytes(prompt[: num_full * block_size]), int_bytes(blocks), "x")
    with BareScheduler(service.address) as scheduler:
        scheduler.start(ENGINE)
        assert scheduler.left == (expected,)
    with BareScheduler(service.address) as scheduler:
        scheduler.start(msgspec.structs.replace(ENGINE, max_num_seqs=ENGINE.max_num_seqs - 1))
        assert scheduler.left == ()


def test_worker_that_contradicts_the_scheduler_fails_and_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    address = f"ipc://{tmp_path}/workers"
    process = start_worker("--model", str(tmp_path / "model"), "--scheduler-address", address)
    with BareScheduler(address) as scheduler:
        scheduler.start(ENGINE)
        scheduler.send(make_step([3], [1], [1]))
        failed = scheduler.wait(WorkerFailed)
    assert failed.detail == "the scheduler sent a step for slots that are not in use"
    assert finish(process) == (1, [f"gpu_worker: {failed.detail}"])


def test_missing_model_fails_with_one_line(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/workers"
    process = start_worker("--model", str(tmp_path / "nowhere"), "--scheduler-address", address)
    with BareScheduler(address) as scheduler:
        scheduler.wait(WorkerHello)
        scheduler.send(ENGINE)
        failed = scheduler.wait(WorkerFailed)
    assert str(tmp_path / "nowhere") in failed.detail
    assert finish(process) == (1, [f"gpu_worker: {failed.detail}"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scheduler-address", "nonsense"], "cannot connect to scheduler address 'nonsense'"),
        (["--scheduler-address", "ipc:///x", "--threads", "0"], "threads is 0"),
        (["--scheduler-address", "ipc:///x", "--threads", "100000"], "threads is 100000: it must be at most"),
        (["--scheduler-address", "ipc:///x", "--cpu-memory-gib", "nan"], "cpu memory is nan GiB"),
        (["--scheduler-address", "ipc:///x", "--rank", "2", "--tensor-parallel-size", "2"], "rank 2 of 2: ranks count"),
        (["--scheduler-address", "ipc:///x", "--tensor-parallel-size", "2"], "the same --distributed-address"),
        (["--scheduler-address", "ipc:///x", *MANY, "--distributed-address", "x"], "'x' is neither HOST:PORT nor"),
    ],
)
def test_bad_settings_fail_with_one_line(flags: list[str], said: str) -> None:
    code, lines = finish(start_worker("--model", "model.gguf", *flags))
    assert code == 1
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_worker_that_waits_for_a_scheduler_stops_when_told(tmp_path: Path, signum: signal.Signals) -> None:
    address = f"ipc://{tmp_path}/workers"
    process = start_worker("--model", "model.gguf", "--scheduler-address", address)
    with BareScheduler(address) as scheduler:
        scheduler.wait(WorkerHello)
    process.send_signal(signum)
    assert finish(process) == (0, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_worker_without_the_gpu_it_should_use_fails_with_one_line() -> None:
    code, lines = finish(start_worker("--model", "model.gguf", "--scheduler-address", "ipc:///x", "--device", "cuda"))
    assert code == 1
    assert len(lines) == 1
    assert lines[0].endswith("or use --device cpu")


def test_worker_keeps_its_kernels_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_worker", "--model", "m.gguf", "--scheduler-address", "ipc:///x"])
    for base, expected in (("/caches", "/caches/pagewire"), ("", f"{Path.home()}/.cache/pagewire")):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert _config(_parse()).cache_dir == Path(expected)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_worker_told_to_stop_during_its_imports_ends_at_once(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "torch.py").write_text(SWALLOWING_TORCH)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start_worker(
        "--model", "m.gguf", "--scheduler-address", "ipc:///x", PYTHONPATH=path, SIGNAL_OF_TEST=str(int(signum))
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (-signum, "")


def test_worker_takes_a_message_to_anybody(service: Service, scheduler: BareScheduler) -> None:
    scheduler.wait(WorkerHello)
    scheduler.worker = ANY
    loaded = scheduler.start(ENGINE)
    scheduler.send(AllocateCache(loaded.num_blocks), recipient=ANY)
