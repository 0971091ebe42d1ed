"""How does a layer multiply by the weight as it is, on any device in any dtype?"""

import torch
import torch.nn.functional as F

from gpu_worker.quantization.linear_method import LinearOp


class PlainLinearMethod:
    """Weights stay row-major in one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.compute_dtype = dtype
        self.weight_dtype = dtype
        self.table_dtype = dtype

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""

        return lambda x: float32_product(x, weight)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""

        def multiply(x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, weight, bias)

        return multiply


def float32_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T in float32, whatever dtype both have."""
    if x.dtype is torch.float32:
        return F.linear(x, weight)
    if x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return F.linear(x.float(), weight.float())
