"""Which attention backend is chosen, and what is said about it."""

import logging

import pytest
import torch

from gpu_worker.attention.cpu_backend import CpuAttention
from gpu_worker.attention.select import AttentionBackendError, AttentionShape, select_backend
from gpu_worker.attention.torch_backend import TorchAttention
from tests.unit.gpu_worker.native_kernels import native

CPU = torch.device("cpu")


def heads_of(head_dim: int) -> AttentionShape:
    return AttentionShape(4, 2, head_dim, frozenset({None}), torch.float32)


def test_select_backend_auto_takes_the_c_kernels(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(select_backend("auto", heads_of(64), 16, CPU, native()), CpuAttention)
    assert "backend=cpu reason=fastest that can run (no triton: the device is cpu;" in caplog.text


def test_select_backend_auto_falls_back_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(select_backend("auto", heads_of(72), 16, CPU, native()), TorchAttention)
        assert isinstance(select_backend("auto", heads_of(64), 16, CPU, None), TorchAttention)
    assert "heads of 72" in caplog.text
    assert "there are no C kernels" in caplog.text


def test_select_backend_takes_what_is_asked_for() -> None:
    assert isinstance(select_backend("torch", heads_of(64), 16, CPU, native()), TorchAttention)
    assert isinstance(select_backend("cpu", heads_of(64), 16, CPU, native()), CpuAttention)


def test_select_backend_takes_none_that_is_not_deterministic() -> None:
    chosen = select_backend("auto", heads_of(64), 16, CPU, native(), deterministic=True)
    assert isinstance(chosen, CpuAttention)
    with pytest.raises(AttentionBackendError, match="'torch' cannot run: its results depend on the batch"):
        select_backend("torch", heads_of(64), 16, CPU, native(), deterministic=True)
    with pytest.raises(AttentionBackendError, match=r"; no cpu: there are no C kernels; .* drop --deterministic"):
        select_backend("auto", heads_of(64), 16, CPU, None, deterministic=True)


@pytest.mark.parametrize(
    ("name", "device", "head_dim", "reason"),
    [
        ("cpu", CPU, 72, "heads of 72"),
        ("cpu", torch.device("cuda"), 64, "is cuda"),
        ("triton", CPU, 64, "the device is cpu"),
    ],
)
def test_select_backend_refuses_what_cannot_run(name: str, device: torch.device, head_dim: int, reason: str) -> None:
    with pytest.raises(AttentionBackendError, match=reason):
        select_backend(name, heads_of(head_dim), 16, device, native())
