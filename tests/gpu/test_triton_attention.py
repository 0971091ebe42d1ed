"""Triton attention on a GPU: half precision against float64, long contexts, and captured graphs."""

import math
from dataclasses import replace

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.attention.backend import AttentionParams

pytestmark = [pytest.mark.gpu, cases.needs_gpu]

LENGTHS = [(1, 1), (1, 63), (1, 64), (1, 700), (1, 5000), (2, 2), (3, 70), (64, 64), (65, 129), (300, 2000), (777, 777)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.poison(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 8), (32, 8), (9, 3), (14, 2), (4, 4), (40, 1), (71, 1)])
def test_attention_is_within_one_percent_of_float64(dtype: torch.dtype, dim: int, heads: int, kv_heads: int) -> None:
    batch = cases.PagedBatch(LENGTHS, heads, kv_heads, dim, 16, dtype)
    params = AttentionParams(scale=1 / math.sqrt(dim))
    assert cases.relative_error(batch.attend(params), batch.expected(params)) < 5e-3


@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize(("window", "soft_cap"), [(512, None), (None, 50.0), (100, 30.0), (1, None)])
def test_attention_with_windows_and_caps(block_size: int, window: int | None, soft_cap: float | None) -> None:
    batch = cases.PagedBatch(LENGTHS, 16, 8, 128, block_size, torch.bfloat16)
    params = AttentionParams(scale=0.2, sliding_window=window, soft_cap=soft_cap)
    assert cases.relative_error(batch.attend(params), batch.expected(params)) < 5e-3


@pytest.mark.parametrize(
    "lengths", [[(1, 131_072)], [(1, 131_072), (1, 5)], [(64, 131_072)], [(1, 100_000), (40, 90_000)]]
)
def test_attention_of_long_contexts(lengths: list[tuple[int, int]]) -> None:
    batch = cases.PagedBatch(lengths, 8, 2, 128, 16, torch.bfloat16)
    params = AttentionParams(scale=1 / math.sqrt(128))
    assert cases.relative_error(batch.attend(params), batch.expected(params)) < 1e-2


def test_attention_finds_blocks_past_two_gigabytes() -> None:
    batch = cases.PagedBatch([(1, 300), (40, 200)], 16, 8, 128, 16, torch.bfloat16)
    params = AttentionParams(scale=0.1)
    expected = batch.attend(params)
    small = batch.cache
    blocks = small.shape[1]
    shift = 2**32 // small[0, 0].numel()
    batch.cache = torch.zeros((2, shift + blocks, *small.shape[2:]), dtype=small.dtype, device=cases.DEVICE)
    batch.cache[:, shift:] = small
    batch.metadata = replace(batch.metadata, block_tables=batch.metadata.block_tables + shift)
    assert torch.equal(batch.attend(params), expected)


@pytest.mark.parametrize("mixed", [False, True])
def test_one_captured_graph_serves_every_batch_that_fits(mixed: bool) -> None:
    """Lengths, tables and how many sequences there are change; the graph, captured on one batch, does not."""
    num_seqs, num_tokens, width = 24, 24 + (700 if mixed else 0), 200
    params = AttentionParams(scale=0.1)
    query = torch.zeros(num_tokens, 16, 128, dtype=torch.bfloat16, device=cases.DEVICE)
    cache = torch.zeros(2, 2000, 16, 8, 128, dtype=torch.bfloat16, device=cases.DEVICE)
    seed = cases.PagedBatch([(1, 10)], 16, 8, 128, 16, torch.bfloat16)
    metadata = replace(
        seed.metadata,
        query_start=torch.zeros(num_seqs + 1, dtype=torch.int32, device=cases.DEVICE),
        seq_lens=torch.zeros(num_seqs, dtype=torch.int32, device=cases.DEVICE),
        block_tables=torch.zeros(num_seqs, width, dtype=torch.int32, device=cases.DEVICE),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=cases.DEVICE),
        num_decodes=num_seqs,
        max_query_len=num_tokens if mixed else 1,
    )
    backend = seed.backend(None)

    def run() -> torch.Tensor:
        backend.prepare(metadata)
        for _ in range(2):
            output = backend.forward(query, cache, metadata, params)
        return output

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    batches = [[(1, 3000), (1, 5)], [(1, length) for length in range(1, 1500, 63)], [(1, 1)] * 24]
    if mixed:
        batches += [[(1, 2000), (1, 9), (600, 900), (100, 100)], [(700, 700)], [(2, 50)] * 20]
    for lengths in batches * 2:
        batch = cases.PagedBatch(lengths, 16, 8, 128, 16, torch.bfloat16)
        tokens, sequences = batch.query.shape[0], len(lengths)
        query[:tokens] = batch.query
        cache[:, : batch.cache.shape[1]] = batch.cache
        metadata.query_start[: sequences + 1] = batch.metadata.query_start
        metadata.query_start[sequences + 1 :] = tokens
        metadata.seq_lens.zero_()[:sequences] = batch.metadata.seq_lens
        tables = batch.metadata.block_tables
        metadata.block_tables[:sequences, : tables.shape[1]] = tables
        graph.replay()
        assert cases.relative_error(output[:tokens], batch.expected(params)) < 5e-3
