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

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""

        def multiply(x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, weight, bias)

        return multiply
