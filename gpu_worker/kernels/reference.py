"""The torch reference of every fused operation: plain, slow, right on any device."""

import torch

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10
_WORD = 0xFFFFFFFF


class ReferenceKernels:
    """See gpu_worker.kernels.interface.Kernels for shapes and meaning."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
        return (wide * weight.float()).to(weight.dtype)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """residual += x; return its RMS norm."""
        residual += x
        return self.rms_norm(residual, weight, eps)

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
        num_kv_heads, head_dim = kv_cache.shape[-2:]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        num_heads = heads.shape[1] - 2 * num_kv_heads
        query, key, value = heads[:, :num_heads], heads[:, num_heads:-num_kv_heads], heads[:, -num_kv_heads:]
        if q_norm is not None and k_norm is not None:
            query = self.rms_norm(query, q_norm, eps)
            key = self.rms_norm(key, k_norm, eps)
        cos, sin = cos_sin[positions][:, None, :].chunk(2, dim=-1)
        keep = slot_mapping >= 0
        slots = slot_mapping[keep]
        kv_cache[0].view(-1, num_kv_heads, head_dim)[slots] = _rotate(key, cos, sin)[keep].to(kv_cache.dtype)
        kv_cache[1].view(-1, num_kv_heads, head_dim)[slots] = value[keep].to(kv_cache.dtype)
        return _rotate(query, cos, sin)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate_up.dtype)

    def add_gumbel_noise(
        self, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int = 0
    ) -> torch.Tensor:
        """logits + Gumbel noise of (seed, position, token id)."""
        return logits + gumbel_noise(seeds, positions, logits.shape[-1], first_token)


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab: int, first_token: int = 0) -> torch.Tensor:
    """Standard Gumbel noise, [num_sampled, vocab] float32, from Philox words turned into uniforms in (0, 1).

    Args:
        first_token: the token id of the first column, a multiple of 4.
    """
    words = philox(seeds, positions, -(-vocab // 4), first_token // 4).flatten(1)[:, :vocab]
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def philox(seeds: torch.Tensor, positions: torch.Tensor, num_counters: int, first_counter: int = 0) -> torch.Tensor:
    """Philox4x32-10 words, [num_sampled, num_counters, 4] int64 holding 32-bit values.

    Key: the two words of the seed. Counter: (first_counter + 0 .. num_counters - 1, position low, position high, 0).
    """
    shape = (seeds.shape[0], num_counters)
    key0 = (seeds & _WORD)[:, None]
    key1 = ((seeds >> 32) & _WORD)[:, None]
    c0 = torch.arange(first_counter, first_counter + num_counters, device=seeds.device).expand(shape)
    c1 = (positions & _WORD)[:, None].expand(shape)
    c2 = ((positions >> 32) & _WORD)[:, None].expand(shape)
    c3 = torch.zeros_like(c0)
    for _ in range(_PHILOX_ROUNDS):
        high0, low0 = _multiply(c0, _PHILOX_MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = (key0 + _PHILOX_WEYL[0]) & _WORD
        key1 = (key1 + _PHILOX_WEYL[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32-bit words of a 32 x 32 bit product, in int64 without overflow: a is split into 16-bit halves."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first 2 * cos.shape[-1] elements of each head as two halves (Su et al., RoFormer, section 3.2)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), rest), dim=-1)
