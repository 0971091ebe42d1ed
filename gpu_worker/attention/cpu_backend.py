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
    """Parts of sequences that one kernel computes: its argument as far as layers share it, and what that points to."""

    work: _Attention
    tensors: tuple[torch.Tensor, ...]


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
        if self._outputs is not None:
            _describe_layer(self._outputs.work, query, kv_cache, output, params)
            if self._decode(self._outputs.work) != 0:
                raise MemoryError("no memory for the partial results of attention")
        if self._prompts is not None:
            _describe_layer(self._prompts.work, query, kv_cache, output, params)
            self._prefill(self._prompts.work)
        return output.flatten(1)


def _split(metadata: AttentionMetadata) -> tuple[_Spans | None, _Spans | None]:
    """Output tokens, each a span of its own, and what is computed of prompts.

    a sequence's rows    | of its prompt ...... | outputs ...... |
                         first_row           + num_prompt     + count
    """
    first_rows, counts = metadata.query_start[:-1], metadata.query_start.diff()
    seq_lens, tables = metadata.seq_lens, metadata.block_tables
    prompt_lens = metadata.prompt_lens
    is_decoding = metadata.num_decodes == len(counts)
    if is_decoding and (prompt_lens is None or bool((prompt_lens < seq_lens).all())):
        return _spans(first_rows, counts, seq_lens, tables, 1), None
    if prompt_lens is None:
        prompt_lens = torch.where(counts == 1, seq_lens - 1, seq_lens)
    num_outputs = (seq_lens - prompt_lens).clamp(min=0).minimum(counts)
    num_prompt = counts - num_outputs
    total_outputs, total_prompt = int(num_outputs.sum()), int(num_prompt.sum())
    outputs, prompts = None, None
    if total_outputs > 0:
        owners = torch.repeat_interleave(num_outputs.long())
        ends = num_outputs.cumsum(0)
        # Counted from a sequence's last token, which is 0, backwards.
        age = (ends[owners] - 1 - torch.arange(total_outputs)).int()
        last_rows = first_rows + counts - 1
        outputs = _spans(
            last_rows[owners] - age, torch.ones_like(age), seq_lens[owners] - age, tables.index_select(0, owners), 1
        )
    if total_prompt > 0:
        owners = num_prompt.nonzero().flatten()
        lens = num_prompt[owners]
        ends = (seq_lens - num_outputs)[owners]
        prompts = _spans(first_rows[owners], lens, ends, tables.index_select(0, owners), int(lens.max()))
    return outputs, prompts


def _spans(
    first_rows: torch.Tensor,
    query_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    block_tables: torch.Tensor,
    max_query_len: int,
) -> _Spans:
    """Fields of struct attention, [num_spans] int32, and the tables."""
    for numbers in (first_rows, query_lens, seq_lens):
        assert numbers.dtype is torch.int32
        assert numbers.is_contiguous()
    assert block_tables.dtype is torch.int32
    assert block_tables.stride(1) == 1
    work = _Attention(
        first_rows=first_rows.data_ptr(),
        query_lens=query_lens.data_ptr(),
        seq_lens=seq_lens.data_ptr(),
        block_tables=block_tables.data_ptr(),
        num_seqs=len(seq_lens),
        table_width=block_tables.stride(0),
        max_query_len=max_query_len,
    )
    return _Spans(work, (first_rows, query_lens, seq_lens, block_tables))


def _describe_layer(
    work: _Attention, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, params: AttentionParams
) -> None:
    """Add what differs from layer to layer."""
    work.query, work.output = query.data_ptr(), output.data_ptr()
    work.keys = keys = kv_cache.data_ptr()
    work.values = keys + kv_cache.stride(0) * kv_cache.itemsize
    _, work.num_heads, work.head_dim = query.shape
    _, _, work.block_size, work.num_kv_heads, _ = kv_cache.shape
    work.window = params.sliding_window or 0
    work.scale = params.scale
    work.soft_cap = params.soft_cap or 0.0
