"""Every way of keeping a weight multiplies by it, at every batch size, and keeps nothing else."""

import weakref

import pytest
import torch

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.quantization.cpu import CpuLinearMethod
from gpu_worker.quantization.fbgemm import FbgemmLinearMethod
from gpu_worker.quantization.linear_method import LinearMethod
from gpu_worker.quantization.onednn import OneDnnLinearMethod
from gpu_worker.quantization.plain import PlainLinearMethod
from gpu_worker.quantization.select import select_linear_method
from tests.unit.gpu_worker.native_kernels import native

CPU = torch.device("cpu")
METHODS = [
    (PlainLinearMethod(torch.float32), 2e-6),
    (OneDnnLinearMethod(), 2e-6),
    (FbgemmLinearMethod(), 5e-4),
    (CpuLinearMethod(native(), torch.float32), 2e-6),
    (CpuLinearMethod(native(), torch.float16), 5e-4),
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


@pytest.mark.parametrize(
    "method", [OneDnnLinearMethod(), FbgemmLinearMethod(), CpuLinearMethod(native(), torch.float32)]
)
def test_pack_frees_the_weight(method: LinearMethod) -> None:
    weight = torch.randn(64, 64)
    freed = weakref.ref(weight)
    multiply = method.pack(weight, None)
    del weight
    assert freed() is None
    assert multiply(torch.ones(1, 64)).shape == (1, 64)


@pytest.mark.parametrize(
    "method",
    [FbgemmLinearMethod(), CpuLinearMethod(native(), torch.float32), CpuLinearMethod(native(), torch.float16)],
)
def test_rows_do_not_depend_on_the_batch(method: LinearMethod) -> None:
    multiply = method.pack(torch.randn(1000, 577), torch.randn(1000))
    x = torch.randn(600, 577)
    together = multiply(x)
    torch.set_num_threads(3)
    for num_tokens in (1, 2, 3, 7, 8, 9, 31, 64, 200, 257):
        assert torch.equal(multiply(x[:num_tokens]), together[:num_tokens])


def test_cpu_method_rounds_weights_to_the_nearest_float16() -> None:
    weight = torch.tensor([[1.0 + 2**-11 + 2**-20, -65504.0, 2**-24, -(2**-15) * 1.1, 0.0, -0.0]])
    multiply = CpuLinearMethod(native(), torch.float16).pack(weight, None)
    found = torch.cat([multiply(row[None]) for row in torch.eye(6)], dim=1)
    assert torch.equal(found, weight.half().float())


def test_select_takes_the_c_kernels_on_a_cpu_and_packed_methods_without_them() -> None:
    for dtype in (torch.float32, torch.float16):
        method = select_linear_method(CPU, dtype, native())
        assert isinstance(method, CpuLinearMethod)
        assert method.table_dtype == dtype
    assert isinstance(select_linear_method(CPU, torch.float32, None), OneDnnLinearMethod)
    assert isinstance(select_linear_method(CPU, torch.float16, None), FbgemmLinearMethod)
    assert isinstance(select_linear_method(torch.device("cuda"), torch.bfloat16, None), PlainLinearMethod)


def test_select_refuses_bfloat16_on_a_cpu() -> None:
    with pytest.raises(ModelLoadError, match="bfloat16 is not served on this CPU; use float32"):
        select_linear_method(CPU, torch.bfloat16, native())
