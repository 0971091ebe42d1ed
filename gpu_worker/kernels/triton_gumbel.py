"""How does a kernel draw the Gumbel noise of (seed, position, token id)?

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11), Philox4x32-10. One counter gives the
words of four token ids, so tiles are [counters, 4] with token ids in row-major order.
"""

import torch
import triton.language as tl
from triton.language.extra.cuda import libdevice

from gpu_worker.kernels.triton_jit import check_contiguous, device_function, kernel, wait_for_inputs

_TOKENS = 2048


def add_gumbel_noise(
    logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, first_token: int, fast: bool, overlap: bool
) -> torch.Tensor:
    """See Kernels.add_gumbel_noise. logits: [num_sampled, vocab] float32; seeds, positions: [num_sampled] int64."""
    check_contiguous(logits, seeds, positions)
    assert first_token % 4 == 0
    rows, vocab = logits.shape
    out = torch.empty_like(logits)
    _add_gumbel_noise_kernel[(rows, -(-vocab // _TOKENS))](
        logits,
        seeds,
        positions,
        out,
        vocab,
        TOKENS=_TOKENS,
        FIRST_TOKEN=first_token,
        FAST=fast,
        OVERLAP=overlap,
        launch_pdl=overlap,
    )
    return out


@kernel()
def _add_gumbel_noise_kernel(
    logits_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    out_ptr: tl.tensor,
    vocab: int,
    TOKENS: tl.constexpr,
    FIRST_TOKEN: tl.constexpr,
    FAST: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """logits, out: [num_sampled, vocab] float32. One program has TOKENS token ids of one row."""
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    counters = tl.program_id(1) * (TOKENS // 4) + tl.arange(0, TOKENS // 4)
    tokens = counters[:, None] * 4 + tl.arange(0, 4)[None, :]
    logits = tl.load(logits_ptr + row * vocab + tokens, mask=tokens < vocab, other=0.0)
    noise = gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), counters + FIRST_TOKEN // 4, FAST)
    tl.store(out_ptr + row * vocab + tokens, logits + noise, mask=tokens < vocab)


@device_function
def gumbel(seed: tl.tensor, position: tl.tensor, counters: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """Standard Gumbel noise of token ids counters * 4 + (0 .. 3): [counters, 4] float32."""
    return _noise_of(philox(seed, position, counters), FAST)


@device_function
def gumbel_of_tokens(seed: tl.tensor, position: tl.tensor, tokens: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """Standard Gumbel noise of any token ids: [tokens] float32."""
    words = philox(seed, position, tokens // 4)
    own = tl.arange(0, 4)[None, :] == (tokens % 4)[:, None]
    return _noise_of(tl.sum(tl.where(own, words, 0), axis=1).to(tl.uint32), FAST)


@device_function
def _noise_of(words: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """-log(-log(uniform)), uniform = (word // 2**9 + 1/2) / 2**23, which is strictly between 0 and 1.

    FAST takes the GPU's approximate logarithms. Their error is absolute, so near 1, where the inner logarithm is small,
    the first terms of its series stand in; then the noise is right to 1e-5.
    """
    # The upper 23 bits as the fraction of a float in 1 .. 2, from which 1 - 2**-24 is taken: exact, and no conversion.
    uniform = ((words >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375
    if FAST:
        rest = 1.0 - uniform
        series = rest * (1.0 + rest * (1 / 2 + rest * (1 / 3 + rest * (1 / 4 + rest * (1 / 5)))))
        exponential = tl.where(rest < 0.0625, series, -libdevice.fast_logf(uniform))
        noise = -libdevice.fast_logf(exponential)
    else:
        noise = -tl.log(-tl.log(uniform))
    return noise


@device_function
def philox(seed: tl.tensor, position: tl.tensor, counters: tl.tensor) -> tl.tensor:
    """Philox4x32-10 words of counters (counter, position low, position high, 0): [counters, 4] uint32."""
    key0 = seed.to(tl.uint32)
    key1 = (seed >> 32).to(tl.uint32)
    c0 = counters.to(tl.uint32)
    c1 = tl.zeros_like(c0) + position.to(tl.uint32)
    c2 = tl.zeros_like(c0) + (position >> 32).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = product0.to(tl.uint32)
        key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
        key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
    # join puts its arguments side by side along a new last dimension: (c0, c2), (c1, c3) -> c0, c1, c2, c3.
    return tl.join(tl.join(c0, c2), tl.join(c1, c3)).reshape(counters.shape[0], 4)
