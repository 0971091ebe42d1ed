"""How does a GPU multiply by weights so that no row depends on those beside it?"""

import torch

from gpu_worker.kernels.triton_jit import can_overlap
from gpu_worker.kernels.triton_product import product
from gpu_worker.quantization.linear_method import LinearOp


class DeterministicLinearMethod:
    """Every output is added up in one order, in steps of any number of rows."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.compute_dtype = dtype
        self.weight_dtype = dtype
        self.table_dtype = dtype
        self._overlap = can_overlap(device)

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        return lambda x: product(x, weight, None, self._overlap, torch.float32)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        return lambda x: product(x, weight, bias, self._overlap)
