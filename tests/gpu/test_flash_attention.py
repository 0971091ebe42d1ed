"""The flash-attn family on a GPU, where a package of it is installed: against float64, and in a captured graph."""

import math
from dataclasses import replace

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.attention.backend import AttentionParams
from gpu_worker.attention.flash_backend import FlashAttention, obstacle_to_flash_attention

OBSTACLE = obstacle_to_flash_attention(cases.DEVICE, 256, torch.bfloat16)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(OBSTACLE is not None, reason=f"no flash-attn: {OBSTACLE}")]

LENGTHS = [(1, 1), (1, 63), (1, 700), (1, 1300), (2, 2), (3, 70), (64, 64), (65, 129), (300, 2000)]


def batch_of(block_size: int, dim: int = 128) -> cases.PagedBatch:
    """Entries of tables past a sequence's end name a block that is there, and holds numbers."""
    batch = cases.PagedBatch(LENGTHS, 16, 8, dim, block_size, torch.bfloat16)
    batch.cache.nan_to_num_()
    batch.metadata = replace(batch.metadata, block_tables=batch.metadata.block_tables.clamp(min=0))
    return batch


def attend(batch: cases.PagedBatch, params: AttentionParams) -> torch.Tensor:
    backend = FlashAttention()
    backend.prepare(batch.metadata)
    return backend.forward(batch.query, batch.cache, batch.metadata, params)


@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (100, None)])
def test_flash_attention_is_within_one_percent_of_float64(
    block_size: int, window: int | None, soft_cap: float | None
) -> None:
    reason = obstacle_to_flash_attention(cases.DEVICE, block_size, torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    batch = batch_of(block_size)
    params = AttentionParams(1 / math.sqrt(128), window, soft_cap)
    assert cases.relative_error(attend(batch, params), batch.expected(params)) < 1e-2


def test_flash_attention_can_be_captured() -> None:
    batch, params = batch_of(256), AttentionParams(0.1)
    expected = attend(batch, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(batch, params)
    graph.replay()
    assert torch.equal(captured, expected)
