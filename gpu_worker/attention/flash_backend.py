"""How does attention run through the flash-attn family, where one of its packages is installed?

    FlashAttention-3   module flash_attn_interface   Hopper
    FlashAttention-4   module flash_attn.cute        Hopper and later
    FlashAttention-2   module flash_attn             Ampere and later; KV blocks of a multiple of 256 tokens

One call does all sequences of a batch, whether they compute one token or several.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams

_FLASH_2 = "flash_attn"
_FLASH_2_BLOCK_STEP = 256


@dataclass(frozen=True, slots=True)
class _Package:
    """How one package wants to be called.

    arguments: its names for where keys begin and end; key_start is [num_seqs + 1] int32, where each one's keys
    would begin if all lay side by side. everything: the window that hides nothing.
    """

    function: str
    arguments: Callable[[AttentionMetadata, torch.Tensor], dict[str, Any]]
    everything: tuple[int | None, int | None]


def obstacle_to_flash_attention(device: torch.device, block_size: int, dtype: torch.dtype) -> str | None:
    """Why the flash-attn family cannot run, None if a package of it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if dtype.itemsize != 2:
        return f"it computes in half precision, not in {dtype}"
    name = _find_package()
    if name is None:
        return "none of the packages flash_attn_interface (3), flash-attn-4 and flash-attn (2) is installed"
    if name == _FLASH_2 and block_size % _FLASH_2_BLOCK_STEP != 0:
        return f"flash-attn 2 needs a --block-size that is a multiple of {_FLASH_2_BLOCK_STEP}, not {block_size}"
    return None


class FlashAttention:
    """Calls the package that comes first in the list above. All lengths are read on the device."""

    reads_device_only = True

    def __init__(self) -> None:
        name = _find_package()
        assert name is not None
        self._package = _PACKAGES[name]
        self._attend = getattr(importlib.import_module(name), self._package.function)
        self._key_start = torch.empty(0, dtype=torch.int32)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """See AttentionBackend.prepare."""
        self._key_start = F.pad(metadata.seq_lens.cumsum(0, dtype=torch.int32), (1, 0))

    def forward(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: AttentionMetadata, params: AttentionParams
    ) -> torch.Tensor:
        """See AttentionBackend.forward."""
        window = params.sliding_window
        result = self._attend(
            query,
            kv_cache[0],
            kv_cache[1],
            cu_seqlens_q=metadata.query_start,
            max_seqlen_q=metadata.max_query_len,
            **self._package.arguments(metadata, self._key_start),
            softmax_scale=params.scale,
            causal=True,
            window_size=self._package.everything if window is None else (window - 1, 0),
            softcap=params.soft_cap or 0.0,
        )
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output.flatten(1)


def _find_package() -> str | None:
    """The module to use, None if there is none."""
    for name in _PACKAGES:
        top = name.partition(".")[0]
        if importlib.util.find_spec(top) is not None and importlib.util.find_spec(name) is not None:
            return name
    return None


def _arguments_3(metadata: AttentionMetadata, key_start: torch.Tensor) -> dict[str, Any]:
    return {
        "cache_seqlens": metadata.seq_lens,
        "page_table": metadata.block_tables,
    }


def _arguments_4(metadata: AttentionMetadata, key_start: torch.Tensor) -> dict[str, Any]:
    return {
        "seqused_k": metadata.seq_lens,
        "max_seqlen_k": metadata.max_seq_len,
        "page_table": metadata.block_tables,
    }


def _arguments_2(metadata: AttentionMetadata, key_start: torch.Tensor) -> dict[str, Any]:
    return {
        "cu_seqlens_k": key_start,
        "max_seqlen_k": metadata.max_seq_len,
        "block_table": metadata.block_tables,
    }


# By module, in the order of preference.
_PACKAGES = {
    "flash_attn_interface": _Package("flash_attn_with_kvcache", _arguments_3, (-1, -1)),
    "flash_attn.cute": _Package("flash_attn_varlen_func", _arguments_4, (None, None)),
    _FLASH_2: _Package("flash_attn_varlen_func", _arguments_2, (-1, -1)),
}
