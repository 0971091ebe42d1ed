"""Paged attention against a float64 reference written out here, over shapes, windows, caps and shuffled blocks."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from gpu_worker.attention.backend import AttentionBackend, AttentionMetadata, AttentionParams
from gpu_worker.attention.cpu_backend import CpuAttention
from gpu_worker.attention.torch_backend import TorchAttention
from tests.unit.gpu_worker.native_kernels import native


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return CpuAttention(native()) if request.param == "cpu" else TorchAttention()


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN, so that an element a kernel forgets is seen."""
    real_empty, real_empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: real_empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: real_empty_like(*a, **k).fill_(float("nan")))


class Batch:
    """A step batch of sequences given as (tokens to compute, tokens in all); the rest of the cache is NaN."""

    def __init__(self, lengths: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, block_size: int) -> None:
        self.lengths = lengths
        widths = [-(-seq_len // block_size) for _, seq_len in lengths]
        num_blocks = sum(widths) + 2
        shuffled = torch.randperm(num_blocks, dtype=torch.int32).tolist()
        self.cache = torch.full((2, num_blocks, block_size, kv_heads, dim), float("nan"))
        tables = torch.full((len(lengths), max(widths) + 1), -1, dtype=torch.int32)
        self.keys_values = []
        for row, ((_, seq_len), width) in enumerate(zip(lengths, widths, strict=True)):
            blocks = [shuffled.pop() for _ in range(width)]
            tables[row, :width] = torch.tensor(blocks)
            tokens = torch.randn(2, seq_len, kv_heads, dim)
            positions = torch.arange(seq_len)
            self.cache[:, torch.tensor(blocks)[positions // block_size], positions % block_size] = tokens
            self.keys_values.append(tokens.double())
        counts = torch.tensor([0] + [count for count, _ in lengths])
        self.query = torch.randn(int(counts.sum()), heads, dim)
        self.metadata = AttentionMetadata(
            query_start=counts.cumsum(0).int(),
            seq_lens=torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32),
            block_tables=tables,
            slot_mapping=torch.empty(0),
            num_decodes=sum(count == 1 for count, _ in lengths),
            max_query_len=max(count for count, _ in lengths),
            max_seq_len=max(seq_len for _, seq_len in lengths),
        )

    def expected(self, params: AttentionParams) -> torch.Tensor:
        """Attention by the definition, in float64."""
        results = []
        rows = self.query.double().split([count for count, _ in self.lengths])
        for query, (count, seq_len), (keys, values) in zip(rows, self.lengths, self.keys_values, strict=True):
            group = query.shape[1] // keys.shape[1]
            age = torch.arange(seq_len - count, seq_len)[:, None] - torch.arange(seq_len)[None, :]
            visible = (age >= 0) & (age < (params.sliding_window or seq_len))
            scores = torch.einsum("qhd,thd->hqt", query, keys.repeat_interleave(group, dim=1)) * params.scale
            if params.soft_cap is not None:
                scores = params.soft_cap * torch.tanh(scores / params.soft_cap)
            weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
            results.append(torch.einsum("hqt,thd->qhd", weights, values.repeat_interleave(group, dim=1)).flatten(1))
        return torch.cat(results)


def attend(
    backend: AttentionBackend, query: torch.Tensor, batch: Batch, metadata: AttentionMetadata, params: AttentionParams
) -> torch.Tensor:
    backend.prepare(metadata)
    return backend.forward(query, batch.cache, metadata, params)


def check(backend: AttentionBackend, batch: Batch, params: AttentionParams) -> None:
    actual = attend(backend, batch.query, batch, batch.metadata, params)
    torch.testing.assert_close(actual.double(), batch.expected(params), rtol=1e-5, atol=1e-5)


# Decodes around the chunk of 128 keys, then chunks around the tiles of 64 rows and 64 keys.
LENGTHS = [(1, 1), (1, 2), (1, 127), (1, 128), (1, 129), (1, 300), (2, 2), (3, 140), (64, 64), (65, 129), (40, 333)]


@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (5, 1), (14, 2)])
def test_attention_of_mixed_batches(backend: AttentionBackend, dim: int, heads: int, kv_heads: int) -> None:
    check(backend, Batch(LENGTHS, heads, kv_heads, dim, 16), AttentionParams(scale=1 / math.sqrt(dim)))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("window", [None, 1, 3, 64, 100, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_attention_with_windows_caps_and_block_sizes(
    backend: AttentionBackend, block_size: int, window: int | None, soft_cap: float | None
) -> None:
    params = AttentionParams(scale=0.3, sliding_window=window, soft_cap=soft_cap)
    check(backend, Batch(LENGTHS, 6, 2, 64, block_size), params)


@pytest.mark.parametrize("lengths", [[(1, 5)], [(1, 700)], [(7, 7)], [(1, 3), (1, 3)], [(200, 200)]])
def test_attention_of_small_batches(backend: AttentionBackend, lengths: list[tuple[int, int]]) -> None:
    check(backend, Batch(lengths, 9, 3, 64, 16), AttentionParams(scale=0.125))


def test_cpu_attention_with_several_threads_gives_the_same() -> None:
    backend, params = CpuAttention(native()), AttentionParams(scale=0.125)
    batch = Batch(LENGTHS, 9, 3, 64, 16)
    alone = attend(backend, batch.query, batch, batch.metadata, params)
    torch.set_num_threads(3)
    assert torch.equal(attend(backend, batch.query, batch, batch.metadata, params), alone)


def test_attention_of_large_scores_does_not_overflow(backend: AttentionBackend) -> None:
    batch = Batch(LENGTHS, 9, 3, 64, 16)
    batch.query *= 30
    actual = attend(backend, batch.query, batch, batch.metadata, AttentionParams(scale=1.0))
    torch.testing.assert_close(actual.double(), batch.expected(AttentionParams(scale=1.0)), rtol=2e-3, atol=2e-3)


def test_attention_passes_nan_on_to_its_own_sequence_only(backend: AttentionBackend) -> None:
    batch = Batch([(1, 200), (1, 50), (30, 90)], 9, 3, 64, 16)
    clean = attend(backend, batch.query, batch, batch.metadata, AttentionParams(scale=0.125))
    batch.cache[0, batch.metadata.block_tables[0, 0], 3] = float("nan")
    actual = attend(backend, batch.query, batch, batch.metadata, AttentionParams(scale=0.125))
    assert actual[0].isnan().all()
    assert torch.equal(actual[1:], clean[1:])


def test_cpu_attention_of_a_sequence_does_not_depend_on_its_batch() -> None:
    backend = CpuAttention(native())
    batch = Batch(LENGTHS, 9, 3, 64, 16)
    params = AttentionParams(scale=0.125)
    together = attend(backend, batch.query, batch, batch.metadata, params)
    for index, (count, seq_len) in enumerate(batch.lengths):
        start = int(batch.metadata.query_start[index])
        alone = replace(
            batch.metadata,
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=batch.metadata.seq_lens[index : index + 1],
            block_tables=batch.metadata.block_tables[index : index + 1],
            num_decodes=int(count == 1),
            max_query_len=count,
            max_seq_len=seq_len,
        )
        query = batch.query[start : start + count].clone()
        assert torch.equal(attend(backend, query, batch, alone, params), together[start : start + count])


@pytest.mark.parametrize("window", [None, 40])
def test_how_a_sequence_is_cut_into_steps_changes_no_bit(window: int | None) -> None:
    backend, params = CpuAttention(native()), AttentionParams(scale=0.125, sliding_window=window)
    seq_len, num_prompt = 300, 130
    whole = Batch([(seq_len, seq_len)], 9, 3, 64, 16)

    def rows(start: int, end: int) -> torch.Tensor:
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_tables=whole.metadata.block_tables,
            slot_mapping=torch.empty(0),
            num_decodes=int(end - start == 1),
            max_query_len=end - start,
            max_seq_len=end,
            prompt_lens=torch.tensor([num_prompt], dtype=torch.int32),
        )
        return attend(backend, whole.query[start:end].contiguous(), whole, metadata, params)

    decoded = torch.cat([rows(0, num_prompt), *(rows(at, at + 1) for at in range(num_prompt, seq_len))])
    assert torch.equal(rows(0, seq_len), decoded)
    cuts = [0, 1, 2, 70, 129, 130, 131, 200, 299, 300]
    assert torch.equal(torch.cat([rows(*cut) for cut in itertools.pairwise(cuts)]), decoded)
