"""Attention on a CPU: C kernels that read keys and values where they lie in the cache."""

import ctypes

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
        ("query_start", _POINTER),
        ("seq_lens", _POINTER),
        ("block_tables", _POINTER),
        ("first_seq", _INT),
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


class CpuAttention:
    """Sequences that compute one token are split over chunks of keys, the others over tiles of queries.

    Neither split depends on the rest of the batch, so a sequence's result does not either.
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

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Nothing is shared by the layers."""

    @staticmethod
    def supports(head_dim: int) -> bool:
        """Whether the kernels can do heads of this size."""
        return head_dim <= _MAX_HEAD_DIM and head_dim % _HEAD_DIM_STEP == 0

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """See AttentionBackend.forward."""
        assert query.dtype is kv_cache.dtype is torch.float32
        assert query.is_contiguous()
        assert kv_cache.is_contiguous()
        output = torch.empty_like(query)
        work = _describe(query, kv_cache, output, metadata, params)
        if metadata.num_decodes > 0:
            work.num_seqs = metadata.num_decodes
            if self._decode(work) != 0:
                raise MemoryError("no memory for the partial results of attention")
        num_chunked = metadata.seq_lens.shape[0] - metadata.num_decodes
        if num_chunked > 0:
            work.first_seq, work.num_seqs = metadata.num_decodes, num_chunked
            self._prefill(work)
        return output.flatten(1)


def _describe(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    metadata: AttentionMetadata,
    params: AttentionParams,
) -> _Attention:
    _, num_heads, head_dim = query.shape
    _, _, block_size, num_kv_heads, _ = kv_cache.shape
    tables = metadata.block_tables
    assert metadata.query_start.dtype is metadata.seq_lens.dtype is tables.dtype is torch.int32
    assert metadata.query_start.is_contiguous()
    assert metadata.seq_lens.is_contiguous()
    assert tables.stride(1) == 1
    keys = kv_cache.data_ptr()
    return _Attention(
        query.data_ptr(),
        keys,
        keys + kv_cache.stride(0) * kv_cache.itemsize,
        output.data_ptr(),
        metadata.query_start.data_ptr(),
        metadata.seq_lens.data_ptr(),
        tables.data_ptr(),
        0,
        0,
        tables.stride(0),
        block_size,
        num_heads,
        num_kv_heads,
        head_dim,
        metadata.max_query_len,
        params.sliding_window or 0,
        params.scale,
        params.soft_cap or 0.0,
    )
