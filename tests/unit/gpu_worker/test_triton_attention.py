"""Triton attention against float64 by the definition: shapes, windows, caps, shuffled blocks, split sequences."""

import math
from dataclasses import replace

import pytest
import torch

import tests.unit.gpu_worker.triton_cases as cases
from gpu_worker.attention.backend import AttentionParams
from gpu_worker.attention.triton_plan import max_decode_items, plan_decode, plan_prefill

# Decodes around a tile of keys and long enough to be split, chunks around the tiles of queries and keys.
LENGTHS = [(1, 1), (1, 2), (1, 64), (1, 65), (1, 500), (2, 2), (3, 70), (64, 64), (65, 129), (20, 200)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.poison(monkeypatch)


def check(batch: cases.PagedBatch, params: AttentionParams) -> None:
    for deterministic in (False, True):
        assert cases.relative_error(batch.attend(params, deterministic), batch.expected(params)) < 2e-6


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(4, 4, 64), (9, 3, 64), (4, 2, 80), (14, 2, 96), (2, 1, 128), (4, 1, 256), (71, 1, 64)],
)
def test_attention_of_mixed_batches(heads: int, kv_heads: int, dim: int) -> None:
    check(cases.PagedBatch(LENGTHS, heads, kv_heads, dim, 16), AttentionParams(scale=1 / math.sqrt(dim)))


@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("window", [None, 1, 50, 64, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_attention_with_windows_caps_and_block_sizes(
    block_size: int, window: int | None, soft_cap: float | None
) -> None:
    params = AttentionParams(scale=0.3, sliding_window=window, soft_cap=soft_cap)
    check(cases.PagedBatch(LENGTHS, 4, 2, 64, block_size), params)


@pytest.mark.parametrize(
    "lengths", [[(1, 5)], [(1, 700)], [(7, 7)], [(1, 3), (1, 3)], [(200, 200)], [(1, 900), (1, 9)]]
)
def test_attention_of_small_batches(lengths: list[tuple[int, int]]) -> None:
    check(cases.PagedBatch(lengths, 9, 3, 64, 16), AttentionParams(scale=0.125))


def test_attention_does_not_need_decodes_first() -> None:
    lengths = [(5, 5), (1, 300), (30, 90), (1, 1)]
    check(cases.PagedBatch(lengths, 4, 2, 64, 16), AttentionParams(scale=0.125))


def test_attention_of_large_scores_does_not_overflow() -> None:
    batch = cases.PagedBatch(LENGTHS, 9, 3, 64, 16)
    batch.query *= 30
    params = AttentionParams(scale=1.0)
    assert cases.relative_error(batch.attend(params), batch.expected(params)) < 1e-4


def test_attention_passes_nan_on_to_its_own_sequence_only() -> None:
    batch = cases.PagedBatch([(1, 700), (1, 50), (30, 90)], 9, 3, 64, 16)
    params = AttentionParams(scale=0.125)
    clean = batch.attend(params)
    batch.cache[0, batch.metadata.block_tables[0, 0], 3] = float("nan")
    actual = batch.attend(params)
    assert actual[0].isnan().all()
    assert torch.equal(actual[1:], clean[1:])


def test_attention_serves_layers_with_different_windows_after_one_prepare() -> None:
    batch = cases.PagedBatch(LENGTHS, 4, 2, 64, 16)
    backend = batch.backend(None, 50)
    backend.prepare(batch.metadata)
    for _ in range(2):
        for window in (None, 50):
            params = AttentionParams(scale=0.125, sliding_window=window)
            actual = backend.forward(batch.query, batch.cache, batch.metadata, params)
            assert cases.relative_error(actual, batch.expected(params)) < 2e-6


@pytest.mark.parametrize("padding_rises", [False, True])
def test_attention_ignores_rows_of_padding(padding_rises: bool) -> None:
    batch = cases.PagedBatch([(1, 100), (1, 300), (5, 40)], 4, 2, 64, 16)
    params = AttentionParams(scale=0.125)
    expected = batch.attend(params)
    num_tokens, pad = batch.query.shape[0], 3
    metadata = batch.metadata
    steps = torch.arange(1, pad + 1, dtype=torch.int32, device=cases.DEVICE) * int(padding_rises)
    batch.metadata = replace(
        metadata,
        query_start=torch.cat((metadata.query_start, num_tokens + steps)),
        seq_lens=torch.cat((metadata.seq_lens, torch.zeros(pad, dtype=torch.int32, device=cases.DEVICE))),
        block_tables=torch.cat((metadata.block_tables, metadata.block_tables[:pad] * 0 - 1)),
        slot_mapping=torch.cat((metadata.slot_mapping, metadata.slot_mapping[:pad] * 0 - 1)),
    )
    batch.query = torch.cat((batch.query, batch.query[:pad]))
    actual = batch.attend(params)
    assert torch.equal(actual[:num_tokens], expected)
    assert actual[num_tokens:].isnan().all()


def random_lengths(num_seqs: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """query_start and seq_lens of a batch where about half of the sequences compute one token."""
    counts = torch.randint(1, 300, (num_seqs,)) * torch.randint(0, 2, (num_seqs,))
    counts = counts.clamp(min=1)
    seq_lens = counts + torch.randint(0, longest, (num_seqs,)) // torch.randint(1, 50, (num_seqs,))
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    return starts.int().to(cases.DEVICE), seq_lens.int().to(cases.DEVICE)


@pytest.mark.parametrize("num_seqs", [1, 2, 17, 300])
@pytest.mark.parametrize("longest", [1, 3000, 130_000])
@pytest.mark.parametrize("window", [None, 777])
def test_decode_plan_covers_every_key_once_longest_first(num_seqs: int, longest: int, window: int | None) -> None:
    query_start, seq_lens = random_lengths(num_seqs, longest)
    plan = plan_decode(query_start, seq_lens, window, 8, 264)
    items = plan.items.tolist()
    real = [item for item in items if item[2] > item[1]]
    assert all(item[0] == -1 and item[1:3] == [0, 0] for item in items[len(real) :])
    assert len(items) == max_decode_items(num_seqs, 8, 264)
    assert not plan.arrivals.any()
    counts = query_start.diff().tolist()
    decodes = {index: length for index, length in enumerate(seq_lens.tolist()) if counts[index] == 1}
    assert {item[0] for item in real} == set(decodes)
    seen = [min(decodes[item[0]], window or decodes[item[0]]) for item in real]
    assert seen == sorted(seen, reverse=True)
    for sequence, length in decodes.items():
        own = [(place, item) for place, item in enumerate(real) if item[0] == sequence]
        first_place = own[0][0]
        assert [place for place, _ in own] == list(range(first_place, first_place + len(own)))
        assert all(item[3:5] == [first_place, len(own)] for _, item in own)
        edges = [max(0, length - (window or length)), *(item[2] for _, item in own)]
        assert [item[1] for _, item in own] == edges[:-1]
        assert edges[-1] == length


@pytest.mark.parametrize(("num_seqs", "tile_tokens"), [(1, 1), (2, 64), (17, 1), (17, 42), (280, 64)])
def test_prefill_plan_has_every_tile_once_most_work_first(num_seqs: int, tile_tokens: int) -> None:
    query_start, seq_lens = random_lengths(num_seqs, 3000)
    items = plan_prefill(query_start, seq_lens, int(query_start[-1]), tile_tokens).tolist()
    counts, lengths = query_start.diff().tolist(), seq_lens.tolist()
    tiles = [(i, t) for i, count in enumerate(counts) if count > 1 for t in range(-(-count // tile_tokens))]
    work = [lengths[i] - counts[i] + (t + 1) * tile_tokens for i, t in items[: len(tiles)]]
    assert work == sorted(work, reverse=True)
    assert sorted((i, t) for i, t in items[: len(tiles)]) == tiles
    assert all(item[0] == -1 for item in items[len(tiles) :])
