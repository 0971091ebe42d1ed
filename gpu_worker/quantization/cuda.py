"""How does a GPU multiply by weights, with Triton's kernels at hand?"""

import torch
import torch.nn.functional as F

from gpu_worker.kernels.triton_jit import can_overlap
from gpu_worker.kernels.triton_linear import is_fastest, linear
from gpu_worker.kernels.triton_product import product
from gpu_worker.quantization.linear_method import LinearOp
from gpu_worker.quantization.plain import float32_product


class CudaLinearMethod:
    """Tensor cores, but for a few rows a kernel that reads the weights before its input is there.

    In deterministic mode every output is added up in one order, in steps of any number of rows.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, deterministic: bool) -> None:
        self.compute_dtype = dtype
        self.weight_dtype = dtype
        self.table_dtype = dtype
        self._overlap = can_overlap(device)
        self._multiply = product if deterministic else _fastest_product

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        multiply, overlap = self._multiply, self._overlap
        return lambda x: multiply(x, weight, None, overlap, torch.float32)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        multiply, overlap = self._multiply, self._overlap
        return lambda x: multiply(x, weight, bias, overlap)


def _fastest_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    overlap: bool,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See triton_product.product. out_dtype: None, or float32 where there is no bias."""
    if is_fastest(x.shape[0], weight):
        return linear(x, weight, bias, overlap, out_dtype)
    return F.linear(x, weight, bias) if out_dtype is None else float32_product(x, weight)
