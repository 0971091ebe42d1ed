"""Is a device that torch cannot use named, with what to do?"""

import pytest
import torch

from gpu_worker.device import obstacle_to_device


@pytest.mark.parametrize(
    ("built_for", "message"),
    [
        (None, "is built without CUDA; install a build with it, or use --device cpu"),
        ("13.0", "torch sees no GPU; check nvidia-smi"),
    ],
)
def test_cuda_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch, built_for: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.version, "hip", None)
    assert message in (obstacle_to_device("cuda") or "")
    assert obstacle_to_device("auto") is None
    assert obstacle_to_device("cpu") is None
