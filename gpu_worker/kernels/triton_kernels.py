"""What offers the fused operations on a GPU, as Triton kernels?"""

import torch

from gpu_worker.kernels import triton_gumbel, triton_norm, triton_rope, triton_sampling, triton_silu
from gpu_worker.kernels.triton_jit import can_overlap
from gpu_worker.kernels.triton_sampling import DeviceSampling


class TritonKernels:
    """See gpu_worker.kernels.interface.Kernels for shapes and meaning. All tensors are contiguous."""

    def __init__(self, device: torch.device, deterministic: bool = False) -> None:
        """Where Triton interprets (on a CPU), nothing overlaps and logarithms are numpy's.

        Args:
            deterministic: draw the same from a row whatever rows are beside it. All else does so anyway.
        """
        self._deterministic = deterministic
        self._overlap = can_overlap(device)
        self._fast = device.type == "cuda"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight."""
        return triton_norm.rms_norm(x, weight, eps, self._overlap)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """residual += x; return its RMS norm."""
        return triton_norm.add_rms_norm(x, residual, weight, eps, self._overlap)

    def rope_and_cache(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """Norm, rotate, write keys and values to the cache, return the queries."""
        return triton_rope.rope_and_cache(
            qkv, positions, cos_sin, kv_cache, slot_mapping, q_norm, k_norm, eps, self._overlap
        )

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up."""
        return triton_silu.silu_mul(gate_up, self._overlap)

    def add_gumbel_noise(
        self, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int = 0
    ) -> torch.Tensor:
        """logits + Gumbel noise of (seed, position, token id)."""
        return triton_gumbel.add_gumbel_noise(logits, seeds, positions, first_token, self._fast, self._overlap)

    def sample(self, logits: torch.Tensor, sampling: DeviceSampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one token per row, and say which rows are finite; see triton_sampling.sample."""
        return triton_sampling.sample(logits, sampling, self._fast, self._overlap, self._deterministic)

    def best_of_part(
        self, logits: torch.Tensor, sampling: DeviceSampling, first_token: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a part of the vocabulary: best value, its token, and which rows are finite; see triton_sampling."""
        return triton_sampling.best_of_part(logits, sampling, first_token, self._fast, self._overlap)
