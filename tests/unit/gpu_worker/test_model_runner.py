"""The runner in this process: what it keeps between loads, and what a step gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker.config import WorkerConfig
from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.kv_cache import CacheTooSmallError
from gpu_worker.model_runner import ModelRunner
from pagewire.ipc.requests import Sampling
from pagewire.ipc.steps import EngineConfig, StepBatch, StepOutput
from tests.fakes.bare_scheduler import make_added, make_step
from tests.unit.gpu_worker.native_kernels import CACHE_DIR
from tests.unit.gpu_worker.tiny_checkpoint import MAX_MODEL_LEN, complete_greedily, write_checkpoint

ENGINE = EngineConfig(4, 4, 64, None, 40)
POISON = 7


def new_runner(path: Path, **settings: object) -> ModelRunner:
    return ModelRunner(WorkerConfig(path, "", CACHE_DIR, 1, device="cpu", **settings))  # type: ignore[arg-type]


def ready_runner(path: Path) -> ModelRunner:
    runner = new_runner(path)
    num_blocks, _ = runner.load(ENGINE, no_progress)
    runner.allocate(num_blocks, no_progress)
    return runner


def execute(runner: ModelRunner, batch: StepBatch) -> StepOutput:
    return runner.launch(batch).output()


def no_progress(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def tokens_of(output_token_ids: bytes) -> list[int]:
    return np.frombuffer(output_token_ids, dtype="<i4").tolist()


def test_steps_give_the_tokens_of_transformers(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    runner = ready_runner(tmp_path)
    prompts = [[5, 9, 30, 2, 77], [60, 3, 14]]
    added = [make_added(0, prompts[0], [9, 4, 7]), make_added(3, prompts[1], [0, 1, 2])]
    outputs: list[list[int]] = [[], []]
    # One prompt at once, the other in chunks of two tokens.
    outputs[1] += tokens_of(execute(runner, make_step([0, 3], [2, 3], [0, 1], added)).token_ids)
    outputs[1] += tokens_of(execute(runner, make_step([3, 0], [1, 2], [1, 0])).token_ids)
    both = tokens_of(execute(runner, make_step([0, 3], [1, 1], [1, 1])).token_ids)
    outputs[0].append(both[0])
    outputs[1].append(both[1])
    for _ in range(3):
        both = tokens_of(execute(runner, make_step([3, 0], [1, 1], [1, 1])).token_ids)
        outputs[1].append(both[0])
        outputs[0].append(both[1])
    expected = [complete_greedily(model, prompt, len(output)) for prompt, output in zip(prompts, outputs, strict=True)]
    assert outputs == expected


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    runner = ready_runner(tmp_path)

    def draw(slot: int, seed: int, others: int) -> list[int]:
        runner.reset_slots()
        warm = Sampling(2.0, 0, 1.0, 0.0, seed)
        added = [make_added(slot, [5, 6, 7], [1, 2, 3], warm)]
        added += [make_added(i, [8 + i], [10 + i]) for i in range(4) if i != slot][:others]
        slots = [sequence.slot for sequence in added]
        order = sorted(slots, key=lambda s: s == slot)
        row = order.index(slot)
        counts = [3 if s == slot else 1 for s in order]
        tokens = [tokens_of(execute(runner, make_step(order, counts, [1] * len(order), added)).token_ids)[row]]
        for _ in range(5):
            tokens += tokens_of(execute(runner, make_step([slot], [1], [1])).token_ids)
        return tokens

    assert draw(0, 11, others=0) == draw(3, 11, others=2) == draw(1, 11, others=3)
    assert draw(0, 11, others=0) != draw(0, 12, others=0)


def test_a_sequence_with_nan_is_flagged_alone(tmp_path: Path) -> None:
    def poison(model: PreTrainedModel) -> None:
        model.get_input_embeddings().weight[POISON] = float("nan")

    write_checkpoint(tmp_path, poison)
    runner = ready_runner(tmp_path)
    # The head is not tied to the embedding: only who reads the poisoned token is ill.
    added = [make_added(0, [5], [0]), make_added(1, [POISON], [1]), make_added(2, [6, POISON, 8], [2, 3])]
    output = execute(runner, make_step([0, 1, 2], [1, 1, 3], [1, 1, 1], added))
    assert output.nan_flags == bytes([0, 1, 1])
    assert all(0 <= token < 101 for token in tokens_of(output.token_ids))
    assert execute(runner, make_step([0], [1], [1])).nan_flags == bytes([0])


def test_a_step_without_slots_or_draws_gives_no_tokens(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    runner = ready_runner(tmp_path)
    first = execute(runner, make_step([0], [2], [0], [make_added(0, [5, 6, 7], [0])], step_id=8))
    assert (first.step_id, first.token_ids, first.nan_flags) == (8, b"", b"")
    assert execute(runner, make_step([], [], [], removed=[0], step_id=9)).token_ids == b""


def test_slots_leave_the_full_blocks_that_gave_finite_logits(tmp_path: Path) -> None:
    def poison(model: PreTrainedModel) -> None:
        model.get_input_embeddings().weight[POISON] = float("nan")

    write_checkpoint(tmp_path, poison)
    runner = ready_runner(tmp_path)
    prompts = {0: [5, 6, 8, 9, 10, 11], 1: [1, 2, 3, POISON, 4], 2: list(range(20, 32)), 3: [1, 2]}
    added = [make_added(slot, prompt, [3 * slot, 3 * slot + 1, 3 * slot + 2]) for slot, prompt in prompts.items()]
    drawn = tokens_of(execute(runner, make_step([3, 0, 1, 2], [2, 6, 5, 9], [1, 1, 1, 0], added)).token_ids)
    assert tokens_of(runner.reset_slots()[0].token_ids) == prompts[0][:4]
    assert runner.reset_slots() == ()
    execute(runner, make_step([3, 0, 1, 2], [2, 6, 5, 12], [1, 1, 1, 1], added))
    tokens = [*prompts[0], drawn[1]]
    for _ in range(2):
        tokens += tokens_of(execute(runner, make_step([0], [1], [1])).token_ids)
    left = {tuple(tokens_of(sequence.token_ids)): tokens_of(sequence.block_ids) for sequence in runner.reset_slots()}
    assert left == {tuple(tokens[:8]): [0, 1], tuple(prompts[2]): [6, 7, 8]}


def test_load_again_keeps_the_weights_and_allocate_again_the_cache(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    runner = ready_runner(tmp_path)
    execute(runner, make_step([0], [2], [1], [make_added(0, [5, 6], [0])]))
    reports: list[int] = []
    num_blocks, model = runner.load(ENGINE, lambda stage, done, total: reports.append(done))
    memory = [cache.data_ptr() for cache in runner.kv_caches]
    runner.allocate(num_blocks, no_progress)
    assert reports == []
    assert model.vocab_size == 101
    assert [cache.data_ptr() for cache in runner.kv_caches] == memory
    # The slots are empty again.
    execute(runner, make_step([0], [2], [1], [make_added(0, [5, 6], [0])]))


def test_load_with_another_length_loads_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    runner = ready_runner(tmp_path)
    reports: list[int] = []
    _, model = runner.load(EngineConfig(4, 4, 64, 50, 40), lambda stage, done, total: reports.append(done))
    assert model.max_model_len == 50
    assert reports != []
    assert not runner.is_ready


def test_load_offers_what_can_be_used_at_most(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    num_blocks, model = new_runner(tmp_path).load(EngineConfig(16, 3, 64, None, None), no_progress)
    assert model.max_model_len == MAX_MODEL_LEN
    assert num_blocks == 3 * MAX_MODEL_LEN // 16


def test_load_without_memory_for_one_sequence_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    runner = new_runner(tmp_path, cpu_memory_gib=1e-6)
    with pytest.raises(CacheTooSmallError, match="one sequence of 128 tokens"):
        runner.load(EngineConfig(16, 3, 64, None, None), no_progress)


def test_load_of_a_missing_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        new_runner(tmp_path / "nowhere").load(ENGINE, no_progress)


def test_dummy_weights_follow_the_seed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    def logits(seed: int) -> list[int]:
        runner = new_runner(tmp_path, load_format="dummy", seed=seed)
        runner.allocate(runner.load(ENGINE, no_progress)[0], no_progress)
        warm = Sampling(1.0, 0, 1.0, 0.0, 1)
        tokens = tokens_of(
            execute(runner, make_step([0], [2], [1], [make_added(0, [5, 6], [0, 1, 2], warm)])).token_ids
        )
        for _ in range(8):
            tokens += tokens_of(execute(runner, make_step([0], [1], [1])).token_ids)
        return tokens

    torch.manual_seed(99)
    assert logits(1) == logits(1)
