"""Which linear method fits a device and a dtype?"""

import ctypes

import torch

from gpu_worker.formats.errors import ModelLoadError
from gpu_worker.kernels.select import obstacle_to_triton
from gpu_worker.quantization.cpu import CpuLinearMethod
from gpu_worker.quantization.fbgemm import FbgemmLinearMethod
from gpu_worker.quantization.linear_method import LinearMethod
from gpu_worker.quantization.onednn import OneDnnLinearMethod
from gpu_worker.quantization.plain import PlainLinearMethod


def select_linear_method(
    device: torch.device, dtype: torch.dtype, native: ctypes.CDLL | None, *, deterministic: bool = False
) -> LinearMethod:
    """The fastest method that keeps weights in `dtype` on `device`. On a CPU activations are always float32.

    Args:
        native: the C kernels for a CPU, None where there are none.
        deterministic: give a row the same bits whatever rows are beside it, where there are Triton's or C kernels.

    Raises:
        ModelLoadError: this CPU cannot do it, or not at a bearable speed.
    """
    if device.type != "cpu":
        if obstacle_to_triton(device) is not None:
            return PlainLinearMethod(dtype)
        from gpu_worker.quantization.cuda import CudaLinearMethod  # noqa: PLC0415 - triton need not be installed

        return CudaLinearMethod(device, dtype, deterministic)
    if native is not None and dtype in (torch.float32, torch.float16):
        return CpuLinearMethod(native, dtype)
    if dtype == torch.float32:
        has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return OneDnnLinearMethod() if has_onednn else PlainLinearMethod(dtype)
    if dtype == torch.float16 and "fbgemm" in torch.backends.quantized.supported_engines:
        return FbgemmLinearMethod()
    raise ModelLoadError(f"dtype {dtype} is not served on this CPU; use float32, or float16 on an x86 CPU with AVX2")
