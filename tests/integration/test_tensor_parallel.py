"""Ranks that are processes: the same tokens as one rank gives, and an end of all when one is lost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pagewire.ipc.requests import Sampling
from pagewire.ipc.steps import EngineConfig, JoinGroup, WorkerFailed, WorkerHello
from tests.fakes.bare_gateway import make_submit
from tests.fakes.bare_scheduler import BareScheduler
from tests.fakes.engine_processes import engine
from tests.fakes.free_port import free_port
from tests.fakes.patience import PATIENCE_S
from tests.unit.gpu_worker.tiny_checkpoint import write_checkpoint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_greedy.json").read_text())
GREEDY = Sampling(0.0, 0, 1.0, 0.0, 0)
DRAWS = [Sampling(0.8, 0, 1.0, 0.0, 11), Sampling(1.2, 0, 0.9, 0.0, 12), Sampling(0.9, 40, 0.95, 0.05, 13)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return folder


def tokens_of(model: Path, folder: Path, num_ranks: int, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    with engine(model, folder, num_ranks) as running:
        return running.run(prompts, [GREEDY, *DRAWS], max_tokens)


def test_two_ranks_give_the_tokens_of_one(tiny: Path, tmp_path: Path) -> None:
    prompts = [[5, 9, 30, 2, 77], [3], list(range(3, 90))]
    alone = tokens_of(tiny, tmp_path / "1", 1, prompts, 24)
    assert tokens_of(tiny, tmp_path / "2", 2, prompts, 24) == alone


@pytest.mark.model
def test_three_ranks_of_the_demo_model_give_the_tokens_of_one(demo_model: Path, tmp_path: Path) -> None:
    cases = sorted(GOLDEN, key=lambda case: len(case["prompt_ids"]))[:2]
    prompts = [case["prompt_ids"] for case in cases]
    alone = tokens_of(demo_model, tmp_path / "1", 1, prompts, 16)
    assert alone[:: 1 + len(DRAWS)] == [case["output_ids"][:16] for case in cases]
    assert tokens_of(demo_model, tmp_path / "3", 3, prompts, 16) == alone


@pytest.mark.parametrize("lost_by", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_loses_another_ends_with_one_line(tiny: Path, tmp_path: Path, lost_by: signal.Signals) -> None:
    flags = ["--distributed-address", f"127.0.0.1:{free_port()}", "--distributed-timeout-s", "15"]
    with engine(tiny, tmp_path / "run", 2, *flags) as running:
        running.ranks[1].send_signal(lost_by)
        running.gateway.send(make_submit(1, [1, 2, 3]))
        _, errors = running.ranks[0].communicate(timeout=PATIENCE_S)
    assert running.ranks[0].returncode == 1
    said = [line for line in errors.splitlines() if line.startswith("gpu_worker: ")]
    assert len(said) == 1
    assert said[0].startswith("gpu_worker: the other ranks are gone or hang: ")


def start_alone(model: Path, folder: Path, num_ranks: int, address: str) -> "subprocess.Popen[str]":
    """Rank 0 without the others."""
    command = [sys.executable, "-m", "gpu_worker", "--device", "cpu", "--model", str(model), "--log-level", "warning"]
    command += ["--scheduler-address", f"ipc://{folder}/w", "--tensor-parallel-size", str(num_ranks)]
    command += ["--distributed-address", address, "--distributed-timeout-s", "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def failure_at_joining(process: "subprocess.Popen[str]", folder: Path) -> str:
    """What a worker says that is told to join a group, and then ends with."""
    with BareScheduler(f"ipc://{folder}/w") as scheduler:
        scheduler.wait(WorkerHello)
        # A scheduler that forgets the group is not obeyed.
        scheduler.send(EngineConfig(16, 4, 64, None, None))
        scheduler.send(JoinGroup(b"together"))
        failed = scheduler.wait(WorkerFailed)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    said = [line for line in errors.splitlines() if line.startswith("gpu_worker: ")]
    assert said == [f"gpu_worker: {failed.detail}"]
    return failed.detail


@pytest.mark.parametrize("place", ["file:{}/ranks", "127.0.0.1:{}"])
def test_a_rank_that_the_others_do_not_join_ends_with_one_line(tiny: Path, tmp_path: Path, place: str) -> None:
    address = place.format(tmp_path if place.startswith("file:") else free_port())
    said = failure_at_joining(start_alone(tiny, tmp_path, 2, address), tmp_path)
    assert said.startswith(f"rank 0 of 2 did not meet the others at {address} within ")


def test_more_ranks_than_heads_are_refused_before_they_meet(tiny: Path, tmp_path: Path) -> None:
    said = failure_at_joining(start_alone(tiny, tmp_path, 5, f"file:{tmp_path}/ranks"), tmp_path)
    assert said == (
        "4 query heads (2 KV heads) cannot be split over 5 ranks: "
        "--tensor-parallel-size can be 1 to 4, and 1, 2, 4 keep all ranks equally busy"
    )
