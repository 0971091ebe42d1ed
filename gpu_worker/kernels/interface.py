"""The fused operations of a decoder layer and of sampling, as every implementation offers them."""

from typing import Protocol

import torch


class Kernels(Protocol):
    """Fused operations. Outputs are new tensors unless said otherwise; results are in the first input's dtype, those of
    norms in the weight's. Sums inside are float32."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight, row by row. x: [num_tokens, hidden] float32, weight: [hidden]."""
        ...

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Add x to residual in place, and return the sum's RMS norm. x, residual (float32): [num_tokens, hidden]."""
        ...

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
        """Normalise (where the model does) and rotate queries and keys; write keys and values into the cache.

        Args:
            qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], query, key, value side by side.
            positions: [num_tokens] int64.
            cos_sin: [max_model_len, rotary_dim] float32, cosines in the first half, sines in the second; the first
                rotary_dim elements of a head are rotated as two halves (GPT-NeoX order), the rest pass.
            kv_cache: [2, num_blocks, block_size, num_kv_heads, head_dim], written at slot_mapping.
            slot_mapping: [num_tokens] int64; a negative slot writes nothing.
            q_norm, k_norm: [head_dim], RMS norm weights per head, both or neither.

        Returns:
            The queries, [num_tokens, num_heads, head_dim].
        """
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up. gate_up: [num_tokens, 2 * intermediate] -> [num_tokens, intermediate]."""
        ...

    def add_gumbel_noise(
        self, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int = 0
    ) -> torch.Tensor:
        """Add Gumbel noise that is a pure function of (seed, position, token id).

        Args:
            logits: [num_sampled, vocab] float32, already divided by the temperature.
            seeds: [num_sampled] int64 (the bits of an unsigned seed).
            positions: [num_sampled] int64, output position of the token being drawn.
            first_token: the token id of the first logit of each row, a multiple of 4.

        Returns:
            [num_sampled, vocab] float32; its argmax is a draw from softmax(logits). Source: Salmon et al., "Parallel
            random numbers: as easy as 1, 2, 3" (SC'11), Philox4x32-10, with key = seed, counter = (token id // 4,
            position low, position high, 0), word = token id % 4.
        """
        ...
