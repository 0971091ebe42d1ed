"""How does a GPU multiply by weights in half precision?"""

import torch
import torch.nn.functional as F

from gpu_worker.kernels.triton_jit import can_overlap
from gpu_worker.kernels.triton_linear import is_fastest, linear
from gpu_worker.quantization.linear_method import LinearOp
from gpu_worker.quantization.plain import float32_product


class CudaLinearMethod:
    """Tensor cores, but for a few rows a kernel that reads the weights before its input is there."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.compute_dtype = dtype
        self.weight_dtype = dtype
        self.table_dtype = dtype
        self._overlap = can_overlap(device)

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        overlap = self._overlap

        def multiply(x: torch.Tensor) -> torch.Tensor:
            if is_fastest(x.shape[0], weight):
                return linear(x, weight, None, overlap, torch.float32)
            return float32_product(x, weight)

        return multiply

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        overlap = self._overlap

        def multiply(x: torch.Tensor) -> torch.Tensor:
            if is_fastest(x.shape[0], weight):
                return linear(x, weight, bias, overlap)
            return F.linear(x, weight, bias)

        return multiply
