"""The fused operations on a CPU: C kernels over float32, called through ctypes."""

import ctypes

import torch

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _RopeSizes(ctypes.Structure):
    """struct rope_sizes of cpu_fused.c."""

    _fields_ = (
        ("num_tokens", _INT),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("rotary_dim", _INT),
    )


class CpuKernels:
    """See gpu_worker.kernels.interface.Kernels for shapes and meaning. All tensors are contiguous float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Bind the functions of a library that `load_native` gave."""
        self._rms_norm = library.pagewire_rms_norm
        self._add_rms_norm = library.pagewire_add_rms_norm
        self._silu_mul = library.pagewire_silu_mul
        self._rope_and_cache = library.pagewire_rope_and_cache
        self._add_gumbel_noise = library.pagewire_add_gumbel_noise
        self._rms_norm.argtypes = (*[_POINTER] * 3, _INT, _INT, _FLOAT)
        self._add_rms_norm.argtypes = (*[_POINTER] * 4, _INT, _INT, _FLOAT)
        self._silu_mul.argtypes = (_POINTER, _POINTER, _INT, _INT)
        self._rope_and_cache.argtypes = (*[_POINTER] * 9, ctypes.POINTER(_RopeSizes), _FLOAT)
        self._add_gumbel_noise.argtypes = (*[_POINTER] * 4, _INT, _INT, _INT)
        for function in (
            self._rms_norm,
            self._add_rms_norm,
            self._silu_mul,
            self._rope_and_cache,
            self._add_gumbel_noise,
        ):
            function.restype = None

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight."""
        rows, size = x.shape
        _check(x, weight)
        assert weight.shape[0] == size
        out = torch.empty_like(x)
        self._rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps)
        return out

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """residual += x; return its RMS norm."""
        rows, size = x.shape
        _check(x, residual, weight)
        assert residual.shape == x.shape
        assert weight.shape[0] == size
        out = torch.empty_like(x)
        self._add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps)
        return out

    def rope_and_cache(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """Norm, rotate, write keys and values to the cache, return the queries."""
        num_kv_heads, head_dim = kv_cache.shape[-2:]
        num_tokens, row_size = qkv.shape
        num_heads = row_size // head_dim - 2 * num_kv_heads
        _check(qkv, cos_sin, kv_cache)
        assert positions.dtype is torch.int64
        assert slot_mapping.dtype is torch.int64
        query = torch.empty((num_tokens, num_heads, head_dim))
        keys = kv_cache.data_ptr()
        self._rope_and_cache(
            qkv.data_ptr(),
            positions.data_ptr(),
            cos_sin.data_ptr(),
            keys,
            keys + kv_cache.stride(0) * kv_cache.itemsize,
            slot_mapping.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
            query.data_ptr(),
            _RopeSizes(num_tokens, num_heads, num_kv_heads, head_dim, cos_sin.shape[-1]),
            eps,
        )
        return query

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        _check(gate_up)
        out = torch.empty((rows, size))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, size)
        return out

    def add_gumbel_noise(
        self, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int = 0
    ) -> torch.Tensor:
        """logits + Gumbel noise of (seed, position, token id)."""
        rows, vocab = logits.shape
        _check(logits)
        assert first_token % 4 == 0
        assert seeds.shape == positions.shape == (rows,)
        assert seeds.dtype is positions.dtype is torch.int64
        out = torch.empty_like(logits)
        self._add_gumbel_noise(
            logits.data_ptr(),
            seeds.contiguous().data_ptr(),
            positions.contiguous().data_ptr(),
            out.data_ptr(),
            rows,
            vocab,
            first_token,
        )
        return out


def _check(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.dtype is torch.float32
        assert tensor.is_contiguous()
