"""How many KV blocks are offered, and what is said when they cannot be had."""

import pytest
import torch

from gpu_worker.kv_cache import (
    CacheShape,
    CacheTooSmallError,
    ModelTooLargeError,
    count_blocks,
    cpu_budget_bytes,
    explaining_memory,
)

SHAPE = CacheShape(num_layers=3, block_size=16, num_kv_heads=2, head_dim=8, dtype=torch.float32)
BLOCK_BYTES = 2 * 3 * 16 * 2 * 8 * 4


def test_block_bytes_are_those_of_the_tensors() -> None:
    layers = SHAPE.allocate(5, torch.device("cpu"))
    assert len(layers) == 3
    assert layers[0].shape == (2, 5, 16, 2, 8)
    assert layers[0].dtype == torch.float32
    assert sum(layer.nbytes for layer in layers) == 5 * SHAPE.block_bytes == 5 * BLOCK_BYTES
    assert all(not layer.any() for layer in layers)


def test_count_blocks_takes_what_fits() -> None:
    assert count_blocks(SHAPE, 10 * BLOCK_BYTES + 1, max_model_len=100, max_num_seqs=50, wanted=None) == 10


def test_count_blocks_takes_no_more_than_can_be_used() -> None:
    assert count_blocks(SHAPE, 1000 * BLOCK_BYTES, max_model_len=33, max_num_seqs=4, wanted=None) == 12


def test_count_blocks_takes_what_is_wanted() -> None:
    assert count_blocks(SHAPE, 10 * BLOCK_BYTES, max_model_len=10_000, max_num_seqs=1, wanted=7) == 7


@pytest.mark.parametrize(
    ("budget", "wanted", "said"),
    [
        (6 * BLOCK_BYTES, None, "one sequence of 100 tokens takes"),
        (-5, None, "0.00 GiB are left"),
        (6 * BLOCK_BYTES, 7, "lower --num-blocks"),
    ],
)
def test_count_blocks_says_what_does_not_fit(budget: int, wanted: int | None, said: str) -> None:
    with pytest.raises(CacheTooSmallError, match=said):
        count_blocks(SHAPE, budget, max_model_len=100, max_num_seqs=50, wanted=wanted)


def test_cpu_budget_is_what_was_asked_for_or_within_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_budget_bytes(0.5, 3) == 2**29
    assert 0 < cpu_budget_bytes(None, 1) < 2**50
    monkeypatch.setattr("gpu_worker.kv_cache.available_memory_bytes", lambda: 600)
    assert [cpu_budget_bytes(None, num_ranks) for num_ranks in (1, 2, 3)] == [300, 150, 100]


def test_a_gpu_whose_memory_runs_out_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 << 30)
    message = "the memory of cuda ran out while trying: of 80.0 GiB this process has 70.0, others have 9.0"
    with pytest.raises(ModelTooLargeError, match=message), explaining_memory("trying", torch.device("cuda")):
        raise torch.OutOfMemoryError
