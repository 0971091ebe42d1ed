"""How does a CPU multiply by float32 weights fastest?"""

import torch

from gpu_worker.quantization.linear_method import LinearOp


class OneDnnLinearMethod:
    """Float32 weights in the blocked layout that oneDNN picks for this machine.

    No batch size is hinted: with the hint 1 oneDNN picks a layout that is slower at every batch size above 1.
    """

    compute_dtype = torch.float32
    weight_dtype = torch.float32
    table_dtype = torch.float32

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        return self.pack(weight, None)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

        def multiply(x: torch.Tensor) -> torch.Tensor:
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
            return product

        return multiply
