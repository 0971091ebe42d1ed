"""Every way of keeping a weight multiplies by it, at every batch size, and keeps nothing else."""

import weakref

import pytest
import torch

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.quantization.fbgemm import FbgemmLinearMethod
from gpu_worker.quantization.linear_method import LinearMethod
from gpu_worker.quantization.onednn import OneDnnLinearMethod
from gpu_worker.quantization.plain import PlainLinearMethod
from gpu_worker.quantization.select import select_linear_method

CPU = torch.device("cpu")
METHODS = [
    (PlainLinearMethod(torch.float32), 2e-6),
    (OneDnnLinearMethod(), 2e-6),
    (FbgemmLinearMethod(), 5e-4),
]


@pytest.mark.parametrize(("method", "tolerance"), METHODS)
@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (33, 7), (1, 64), (101, 48)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_pack_multiplies(
    method: LinearMethod, tolerance: float, out_features: int, in_features: int, with_bias: bool
) -> None:
    weight, bias = torch.randn(out_features, in_features), torch.randn(out_features)
    packed_bias = bias.clone() if with_bias else None
    with torch.inference_mode():
        multiply = method.pack(weight.clone(), packed_bias)
        for num_tokens in (0, 1, 2, 7, 33, 256):
            x = torch.randn(num_tokens, in_features)
            expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
            found = multiply(x)
            assert found.shape == expected.shape
            assert found.dtype == torch.float32
            # Rounding a weight errs by at most 2^-11 of it in float16, so the sum errs by that of its absolute terms.
            bound = x.double().abs() @ weight.double().abs().T + bias.double().abs()
            assert bool(((found - expected).abs() <= tolerance * bound).all())


@pytest.mark.parametrize("method", [OneDnnLinearMethod(), FbgemmLinearMethod()])
def test_pack_frees_the_weight(method: LinearMethod) -> None:
    weight = torch.randn(64, 64)
    freed = weakref.ref(weight)
    multiply = method.pack(weight, None)
    del weight
    assert freed() is None
    assert multiply(torch.ones(1, 64)).shape == (1, 64)


def test_float16_rows_do_not_depend_on_the_batch() -> None:
    multiply = FbgemmLinearMethod().pack(torch.randn(3072, 576), None)
    x = torch.randn(300, 576)
    together = multiply(x)
    for num_tokens in (1, 2, 3, 8, 31, 64, 200):
        assert torch.equal(multiply(x[:num_tokens]), together[:num_tokens])


def test_select_takes_the_packed_methods_on_a_cpu() -> None:
    assert isinstance(select_linear_method(CPU, torch.float32), OneDnnLinearMethod)
    assert isinstance(select_linear_method(CPU, torch.float16), FbgemmLinearMethod)
    assert isinstance(select_linear_method(torch.device("cuda"), torch.bfloat16), PlainLinearMethod)


def test_select_refuses_bfloat16_on_a_cpu() -> None:
    with pytest.raises(ModelLoadError, match="bfloat16 is not served on this CPU; use float32"):
        select_linear_method(CPU, torch.bfloat16)
