"""Ranks that hold parts of a model give what one rank with all of it gives."""

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.parallel import ParallelGroup, check_split, even_sizes, split, split_heads, split_vocab
from gpu_worker.weights import read_config
from tests.fakes.patience import PATIENCE_S
from tests.unit.gpu_worker.gloo_rank import run_gloo_rank
from tests.unit.gpu_worker.model_harness import (
    SIZES,
    PagedRun,
    load,
    random_model,
    random_sequences,
    reference_logits,
    relative_error,
)
from tests.unit.gpu_worker.thread_ranks import run_ranks


def run_model(group: ParallelGroup, path: Path, sequences: Sequence[Sequence[int]], chunk: int) -> list[torch.Tensor]:
    """One rank's logits of every sequence."""
    run = PagedRun(load(path, group), sequences)
    run.finish(chunk)
    run.finish(1)
    return run.logits


def sizes(**changes: Any) -> dict[str, Any]:
    return {**SIZES, **changes}


SPLITS: dict[str, tuple[PreTrainedConfig, int]] = {
    "even": (LlamaConfig(**sizes(num_key_value_heads=2, vocab_size=100)), 2),
    "one-group-each": (LlamaConfig(**sizes(num_key_value_heads=3)), 3),
    "uneven-groups": (LlamaConfig(**sizes(num_key_value_heads=3)), 2),
    "replicated-2": (LlamaConfig(**sizes(num_key_value_heads=1)), 2),
    "replicated-3": (LlamaConfig(**sizes(num_key_value_heads=1)), 3),
    "partly-replicated": (LlamaConfig(**sizes(num_key_value_heads=2)), 3),
    "all-biases": (LlamaConfig(**sizes(attention_bias=True, mlp_bias=True)), 2),
    "tied": (LlamaConfig(**sizes(tie_word_embeddings=True)), 3),
    "tiny-last-part": (LlamaConfig(**sizes(vocab_size=33)), 3),
    "qwen2": (Qwen2Config(**sizes()), 2),
    "qwen3": (Qwen3Config(**sizes(num_key_value_heads=1), head_dim=20, tie_word_embeddings=True), 2),
}


@pytest.mark.parametrize("name", SPLITS)
def test_ranks_together_match_transformers(name: str, tmp_path: Path) -> None:
    config, world_size = SPLITS[name]
    reference = random_model(config)
    reference.save_pretrained(tmp_path)
    sequences = random_sequences((30, 11), config.vocab_size)
    expected = reference_logits(reference, sequences)
    for logits in run_ranks(world_size, lambda group: run_model(group, tmp_path, sequences, 9)):
        for found, wanted in zip(logits, expected, strict=True):
            assert relative_error(found, wanted) < 2e-4


def test_dummy_ranks_cut_the_same_weights(tmp_path: Path) -> None:
    random_model(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (ids,) = random_sequences((12,), SIZES["vocab_size"])
    alone = PagedRun(load(tmp_path, load_format="dummy"), [ids])
    alone.finish(12)

    def run_rank(group: ParallelGroup) -> torch.Tensor:
        run = PagedRun(load(tmp_path, group, load_format="dummy"), [ids])
        run.finish(12)
        return run.logits[0]

    for logits in run_ranks(2, run_rank):
        assert relative_error(logits, alone.logits[0]) < 1e-5


@pytest.mark.parametrize("divide", [split, split_vocab])
def test_parts_cover_everything_once(divide: Callable[[int, int, int], range]) -> None:
    for size in range(1, 40):
        for world_size in range(1, 9):
            parts = [divide(size, rank, world_size) for rank in range(world_size)]
            assert [row for part in parts for row in part] == list(range(size))


def test_heads_stay_with_the_kv_head_they_read() -> None:
    for num_kv_heads in range(1, 9):
        for group in range(1, 5):
            for world_size in range(1, num_kv_heads * group + 1):
                if world_size > num_kv_heads and group < -(-world_size // num_kv_heads):
                    continue
                heads = [split_heads(num_kv_heads * group, num_kv_heads, r, world_size) for r in range(world_size)]
                assert [q for rank in heads for q in rank.query] == list(range(num_kv_heads * group))
                for rank in heads:
                    share = len(rank.query) // len(rank.kv)
                    assert share * len(rank.kv) == len(rank.query)
                    for index, query in enumerate(rank.query):
                        assert query // group == rank.kv[index // share]


@pytest.mark.parametrize(
    ("changes", "world_size", "said"),
    [
        ({}, 7, r"6 query heads \(2 KV heads\) cannot be split over 7 ranks: .* 1 to 6, and 1, 2, 6 keep"),
        ({"num_key_value_heads": 3}, 8, r"can be 1 to 6, and 1, 3, 6 keep all ranks equally busy"),
        ({"vocab_size": 30}, 3, r"a vocabulary of 30 are too small for 3 ranks"),
        ({"intermediate_size": 4}, 5, r"an intermediate size of 4 .* too small for 5 ranks"),
    ],
)
def test_too_many_ranks_are_refused(changes: dict[str, int], world_size: int, said: str, tmp_path: Path) -> None:
    LlamaConfig(**sizes(**changes), architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    with pytest.raises(ModelLoadError, match=said):
        check_split(config, world_size)


def test_every_size_that_is_called_even_is_even(tmp_path: Path) -> None:
    LlamaConfig(**sizes(num_key_value_heads=3), architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    for world_size in even_sizes(config):
        heads = [split_heads(config.num_heads, config.num_kv_heads, rank, world_size) for rank in range(world_size)]
        assert len({(len(rank.query), len(rank.kv)) for rank in heads}) == 1


def test_processes_sum_and_gather(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=run_gloo_rank, args=(r, str(tmp_path / "store"), results)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=PATIENCE_S)
        assert process.exitcode == 0
    for _ in processes:
        summed, gathered, ordered = results.get()
        assert summed == [3.0, 30.0]
        assert gathered == [[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 6.0, 6.0]]
        assert ordered == [1.0 + 2.0**-9, 2.0**-9]


def test_a_rank_outside_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank 2 is not in 0 \.\. 1"):
        ParallelGroup(2, 2)
