"""The flash-attn backend against stand-ins with the packages' signatures, which attend by the reference."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from gpu_worker.attention.backend import AttentionMetadata, AttentionParams
from gpu_worker.attention.flash_backend import FlashAttention, obstacle_to_flash_attention
from gpu_worker.attention.torch_backend import TorchAttention

GPU = torch.device("cuda")
Window = tuple[int | None, int | None]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    lens: torch.Tensor,
    table: torch.Tensor,
    most: int,
    scale: float,
    causal: bool,
    window: Window,
    softcap: float,
) -> torch.Tensor:
    assert causal
    assert most >= int(starts.diff().max())
    hides = window not in ((-1, -1), (None, None))
    assert not hides or window[1] == 0
    params = AttentionParams(scale, window[0] + 1 if hides and window[0] is not None else None, softcap or None)
    metadata = AttentionMetadata(starts, lens, table, lens.long(), 0, most, int(lens.max()))
    return TorchAttention().forward(q, torch.stack((k, v)), metadata, params).view_as(q)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    window_size: Window,
    softcap: float,
) -> torch.Tensor:
    """FlashAttention-3."""
    lens, starts = cache_seqlens, cu_seqlens_q
    return attend(
        q, k_cache, v_cache, starts, lens, page_table, max_seqlen_q, softmax_scale, causal, window_size, softcap
    )


def flash_attn_varlen_func_4(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_k: torch.Tensor,
    page_table: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: Window,
    softcap: float,
) -> tuple[torch.Tensor, None]:
    """FlashAttention-4, which returns the sums of weights too."""
    assert max_seqlen_k >= int(seqused_k.max())
    scale, lens = softmax_scale, seqused_k
    out = attend(q, k, v, cu_seqlens_q, lens, page_table, max_seqlen_q, scale, causal, window_size, softcap)
    return out, None


def flash_attn_varlen_func_2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: Window,
    softcap: float,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """FlashAttention-2."""
    lens = cu_seqlens_k.diff()
    assert cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_k >= int(lens.max())
    return attend(q, k, v, cu_seqlens_q, lens, block_table, max_seqlen_q, softmax_scale, causal, window_size, softcap)


PACKAGES = {
    "flash_attn_interface": {"flash_attn_with_kvcache": flash_attn_with_kvcache},
    "flash_attn.cute": {"flash_attn_varlen_func": flash_attn_varlen_func_4},
    "flash_attn": {"flash_attn_varlen_func": flash_attn_varlen_func_2},
}


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have just these modules be there."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in names:
        for path in (name.partition(".")[0], name):
            module = ModuleType(path)
            module.__spec__ = ModuleSpec(path, None)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, path, module)
        for function, stand_in in PACKAGES[name].items():
            setattr(module, function, stand_in)


@pytest.mark.parametrize("name", list(PACKAGES))
@pytest.mark.parametrize("params", [AttentionParams(0.3), AttentionParams(0.25, 5, 20.0)])
def test_flash_attention_hands_over_what_each_package_needs(
    monkeypatch: pytest.MonkeyPatch, name: str, params: AttentionParams
) -> None:
    install(monkeypatch, name)
    counts, seq_lens = torch.tensor([0, 1, 1, 6, 3]), torch.tensor([9, 1, 6, 14], dtype=torch.int32)
    tables = torch.randperm(20, dtype=torch.int32)[:16].view(4, 4)
    query, cache = torch.randn(11, 4, 16), torch.randn(2, 20, 4, 2, 16)
    metadata = AttentionMetadata(counts.cumsum(0).int(), seq_lens, tables, torch.zeros(11).long(), 2, 6, 14)
    backend = FlashAttention()
    backend.prepare(metadata)
    expected = TorchAttention().forward(query, cache, metadata, params)
    assert torch.allclose(backend.forward(query, cache, metadata, params), expected)


def test_the_newest_package_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn_interface", "flash_attn")
    assert obstacle_to_flash_attention(GPU, 16, torch.bfloat16) is None


@pytest.mark.parametrize(
    ("names", "device", "block_size", "dtype", "reason"),
    [
        ([], GPU, 16, torch.bfloat16, "is installed"),
        (["flash_attn"], GPU, 16, torch.bfloat16, "multiple of 256, not 16"),
        (["flash_attn"], GPU, 256, torch.float32, "half precision"),
        (["flash_attn"], torch.device("cpu"), 256, torch.bfloat16, "the device is cpu"),
    ],
)
def test_what_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    device: torch.device,
    block_size: int,
    dtype: torch.dtype,
    reason: str,
) -> None:
    install(monkeypatch, *names)
    obstacle = obstacle_to_flash_attention(device, block_size, dtype)
    assert obstacle is not None
    assert reason in obstacle
