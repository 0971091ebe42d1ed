"""How does a CPU multiply float32 activations by float16 weights?"""

import torch

from gpu_worker.quantization.linear_method import LinearOp


class FbgemmLinearMethod:
    """Weights are rounded to float16 and packed by FBGEMM; activations and sums are float32.

    A row's result does not depend on how many other rows are multiplied with it. Rounding errs by 2e-4 of the largest
    output. In memory FBGEMM pads in_features to a multiple of 512.
    """

    compute_dtype = torch.float32
    weight_dtype = torch.float32
    table_dtype = torch.float16

    def pack_head(self, weight: torch.Tensor) -> LinearOp:
        """See LinearMethod.pack_head."""
        return self.pack(weight, None)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> LinearOp:
        """See LinearMethod.pack."""
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

        def multiply(x: torch.Tensor) -> torch.Tensor:
            product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
            return product

        return multiply
