"""How does what the ranks computed reach the residual stream, and the next layer?"""

import torch

from gpu_worker.layers.context import LayerContext


class SumAndNorm:
    """Sums all ranks' parts, adds the sum to the residual stream and normalises that.

    Args:
        slot: of the memory that ranks share; two sums that follow one another have different ones.
    """

    def __init__(self, context: LayerContext, eps: float, slot: int) -> None:
        self._kernels = context.kernels
        self._peer_sum = context.peer_sum
        self._sum = context.parallel.sum_in_order if context.deterministic else context.parallel.all_reduce
        self._eps = eps
        self._slot = slot

    def __call__(self, part: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The normalised stream. part: this rank's, residual: float32, changed in place; all [num_tokens, hidden]."""
        if self._peer_sum is not None and self._peer_sum.takes(part):
            return self._peer_sum(part, residual, weight, self._eps, self._slot)
        return self._kernels.add_rms_norm(self._sum(part), residual, weight, self._eps)
