"""Attention on a CPU: C kernels that read keys and values where they lie in the cache."""

import ctypes
from dataclasses import dataclass

import torch

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
# Of cpu_attention.c: MAX_HEAD_DIM, and the widest vector.
_MAX_HEAD_DIM = 256
_HEAD_DIM_STEP = 16


class _Attention(ctypes.Structure):
    """struct attention of cpu_attention.c."""

    _fields_ = (
        ("query", _POINTER),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("output", _POINTER),
        ("first_rows", _POINTER),
        ("query_lens", _POINTER),
        ("seq_lens", _POINTER),
        ("block_tables", _POINTER),
        ("num_seqs", _INT),
        ("table_width", _INT),
        ("block_size", _INT),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("max_query_len", _INT),
        ("window", _INT),
        ("scale", _FLOAT),
        ("soft_cap", _FLOAT),
    )


@dataclass(frozen=True, slots=True)
class _Spans:
    """Parts of sequences that one kernel computes: fields of struct attention, [num_spans] int32, and the tables."""

    first_rows: torch.Tensor
    query_lens: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    max_query_len: int


class CpuAttention:
    """Tokens of prompts are computed in tiles of queries, output tokens one by one over chunks of keys.

    The two differ in their last bits, so which one computes a token must not depend on the step it is in. A sequence
    that was interrupted computes its output again many tokens at once, and gets the same bits as when it decoded.
    """

    reads_device_only = False

    def __init__(self, library: ctypes.CDLL) -> None:
        """Bind the functions of a library that `load_native` gave."""
        self._decode = library.pagewire_attention_decode
        self._prefill = library.pagewire_attention_prefill
        for function in (self._decode, self._prefill):
            function.argtypes = (ctypes.POINTER(_Attention),)
        self._decode.restype = ctypes.c_int
        self._prefill.restype = None
        self._prepared: AttentionMetadata | None = None
        self._outputs: _Spans | None = None
        self._prompts: _Spans | None = None

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Tell prompts from outputs."""
        self._prepared = metadata
        self._outputs, self._prompts = _split(metadata)

    @staticmethod
    def supports(head_dim: int) -> bool:
        """Whether the kernels can do heads of this size."""
        return head_dim <= _MAX_HEAD_DIM and head_dim % _HEAD_DIM_STEP == 0

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """See AttentionBackend.forward."""
        assert self._prepared is metadata
        assert query.dtype is kv_cache.dtype is torch.float32
        assert query.is_contiguous()
        assert kv_cache.is_contiguous()
        output = torch.empty_like(query)
        if self._outputs is not None and self._decode(_describe(query, kv_cache, output, self._outputs, params)) != 0:
            raise MemoryError("no memory for the partial results of attention")
        if self._prompts is not None:
            self._prefill(_describe(query, kv_cache, output, self._prompts, params))
        return output.flatten(1)


def _split(metadata: AttentionMetadata) -> tuple[_Spans | None, _Spans | None]:
    """Output tokens, each a span of its own, and what is computed of prompts.

    a sequence's rows    | of its prompt ...... | outputs ...... |
                         first_row           + num_prompt     + count
    """
    first_rows, counts = metadata.query_start[:-1], metadata.query_start.diff()
    seq_lens, tables = metadata.seq_lens, metadata.block_tables
    prompt_lens = metadata.prompt_lens
    if prompt_lens is None:
        prompt_lens = torch.where(counts == 1, seq_lens - 1, seq_lens)
    num_outputs = (seq_lens - prompt_lens).clamp(min=0).minimum(counts)
    num_prompt = counts - num_outputs
    total_outputs, total_prompt = int(num_outputs.sum()), int(num_prompt.sum())
    if total_prompt == 0 and total_outputs == len(counts):
        return _Spans(first_rows, counts, seq_lens, tables, 1), None
    outputs, prompts = None, None
    if total_outputs > 0:
        owners = torch.repeat_interleave(num_outputs.long())
        ends = num_outputs.cumsum(0)
        # Counted from a sequence's last token, which is 0, backwards.
        age = (ends[owners] - 1 - torch.arange(total_outputs)).int()
        last_rows = first_rows + counts - 1
        outputs = _Spans(
            last_rows[owners] - age, torch.ones_like(age), seq_lens[owners] - age, tables.index_select(0, owners), 1
        )
    if total_prompt > 0:
        owners = num_prompt.nonzero().flatten()
        lens = num_prompt[owners]
        ends = (seq_lens - num_outputs)[owners]
        prompts = _Spans(first_rows[owners], lens, ends, tables.index_select(0, owners), int(lens.max()))
    return outputs, prompts


def _describe(
    query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, spans: _Spans, params: AttentionParams
) -> _Attention:
    _, num_heads, head_dim = query.shape
    _, _, block_size, num_kv_heads, _ = kv_cache.shape
    tables = spans.block_tables
    for numbers in (spans.first_rows, spans.query_lens, spans.seq_lens):
        assert numbers.dtype is torch.int32
        assert numbers.is_contiguous()
    assert tables.dtype is torch.int32
    assert tables.stride(1) == 1
    keys = kv_cache.data_ptr()
    return _Attention(
        query.data_ptr(),
        keys,
        keys + kv_cache.stride(0) * kv_cache.itemsize,
        output.data_ptr(),
        spans.first_rows.data_ptr(),
        spans.query_lens.data_ptr(),
        spans.seq_lens.data_ptr(),
        tables.data_ptr(),
        len(spans.seq_lens),
        tables.stride(0),
        block_size,
        num_heads,
        num_kv_heads,
        head_dim,
        spans.max_query_len,
        params.sliding_window or 0,
        params.scale,
        params.soft_cap or 0.0,
    )
