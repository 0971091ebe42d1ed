"""On which batches and inputs are the Triton kernels tried?

Importing this module has Triton interpret the kernels where there is no GPU.
"""

import os
import sys
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton" in sys.modules:
        raise RuntimeError("Triton was imported before it was told to interpret: run pytest with TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams  # noqa: E402
from gpu_worker.attention.triton_backend import TritonAttention  # noqa: E402

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="there is no NVIDIA GPU")
_POISON = -7_777


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ in float64; NaN where anything is NaN."""
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN, or a number that makes no sense, so that an element a kernel forgets is seen."""

    def poisoned(make: Any) -> Any:
        def make_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor: torch.Tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else _POISON)

        return make_poisoned

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


class PagedBatch:
    """A step batch of sequences given as (tokens to compute, tokens in all); the rest of the cache is NaN.

    Block ids are shuffled over the pool. Table entries past a sequence's end are -1.
    """

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        dim: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lengths = lengths
        self.shape = (heads, kv_heads, dim, dtype)
        widths = [-(-seq_len // block_size) for _, seq_len in lengths]
        num_blocks = sum(widths) + 2
        shuffled = torch.randperm(num_blocks, dtype=torch.int32).tolist()
        self.cache = torch.full((2, num_blocks, block_size, kv_heads, dim), float("nan"), dtype=dtype, device=DEVICE)
        tables = torch.full((len(lengths), max(widths) + 1), -1, dtype=torch.int32)
        self.keys_values = []
        for row, ((_, seq_len), width) in enumerate(zip(lengths, widths, strict=True)):
            blocks = [shuffled.pop() for _ in range(width)]
            tables[row, :width] = torch.tensor(blocks, dtype=torch.int32)
            tokens = torch.randn(2, seq_len, kv_heads, dim, dtype=dtype, device=DEVICE)
            positions = torch.arange(seq_len)
            self.cache[:, torch.tensor(blocks)[positions // block_size], positions % block_size] = tokens
            self.keys_values.append(tokens.double())
        counts = torch.tensor([0] + [count for count, _ in lengths])
        num_tokens = int(counts.sum())
        self.query = torch.randn(num_tokens, heads, dim, dtype=dtype, device=DEVICE)
        self.metadata = AttentionMetadata(
            query_start=counts.cumsum(0).int().to(DEVICE),
            seq_lens=torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32, device=DEVICE),
            block_tables=tables.to(DEVICE),
            slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE),
            num_decodes=sum(count == 1 for count, _ in lengths),
            max_query_len=max(count for count, _ in lengths),
            max_seq_len=max(seq_len for _, seq_len in lengths),
        )

    def backend(self, *windows: int | None, deterministic: bool = False) -> TritonAttention:
        """A backend for this batch's shapes."""
        heads, kv_heads, dim, dtype = self.shape
        return TritonAttention(heads, kv_heads, dim, frozenset(windows), dtype, DEVICE, deterministic)

    def attend(self, params: AttentionParams, deterministic: bool = False) -> torch.Tensor:
        """What the Triton backend gives: [num_tokens, heads * dim]."""
        backend = self.backend(params.sliding_window, deterministic=deterministic)
        backend.prepare(self.metadata)
        return backend.forward(self.query, self.cache, self.metadata, params)

    def expected(self, params: AttentionParams) -> torch.Tensor:
        """Attention by the definition, in float64."""
        results = []
        rows = self.query.double().split([count for count, _ in self.lengths])
        for query, (count, seq_len), (keys, values) in zip(rows, self.lengths, self.keys_values, strict=True):
            group = query.shape[1] // keys.shape[1]
            places = torch.arange(seq_len, device=DEVICE)
            age = places[seq_len - count :, None] - places[None, :]
            visible = (age >= 0) & (age < (params.sliding_window or seq_len))
            scores = torch.einsum("qhd,thd->hqt", query, keys.repeat_interleave(group, dim=1)) * params.scale
            if params.soft_cap is not None:
                scores = params.soft_cap * torch.tanh(scores / params.soft_cap)
            weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
            results.append(torch.einsum("hqt,thd->qhd", weights, values.repeat_interleave(group, dim=1)).flatten(1))
        return torch.cat(results)
