"""How is a token drawn for every row of logits without writing noise, and without sorting the vocabulary?

Two launches. The first reads the logits once: each program finds, for a part of one row, the best token after noise
was added (Gumbel-max: Maddison et al., "A* Sampling", section 2.2). The second takes the best of the parts. That is
the draw of a row without filters; a greedy row adds no noise. Filtered rows go on from there, see triton_filter.

The vocabulary of a row, read tile by tile; a program has some consecutive tiles, its part:

    0 ....... GROUP ....... 2 * GROUP ....... TILE ....... 2 * TILE ....... vocab
    group 0   group 1       ...
    tile 0                                    tile 1       ...

Parameters were written before the step, so they are read before the logits are there.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from gpu_worker.kernels.triton_filter import MAX_CANDIDATES, draw_filtered, inverse_of
from gpu_worker.kernels.triton_gumbel import gumbel
from gpu_worker.kernels.triton_jit import check_contiguous, kernel, launch_next, next_power_of_2, wait_for_inputs

_GROUP = 128
_TILE = 1024
_STAGES = 3
_MAX_TILES_PER_PART = 16
# Enough programs to fill a large GPU several times.
_MANY_PROGRAMS = 1024
# In deterministic mode, where the number of rows must not say in which order a row's weights are added up.
_FIXED_TILES_PER_PART = 4
_SCAN_WARPS = 4
_CHOOSE_WARPS = 8


@dataclass(frozen=True, slots=True)
class DeviceSampling:
    """Sampling parameters on the device, [num_sampled] each; see gpu_worker.sampling.sampler.SamplingBatch.

    temperature, top_p, min_p: float32; top_k: int32; seeds, positions: int64.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor


def sample(
    logits: torch.Tensor, sampling: DeviceSampling, fast: bool, overlap: bool, deterministic: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row.

    Args:
        logits: [num_sampled, vocab] float32, bfloat16 or float16.
        deterministic: draw the same from a row whatever rows are beside it.

    Returns:
        Token ids, [num_sampled] int64, and whether all logits of a row are finite, [num_sampled] bool. Where they are
        not the token means nothing, but is one of the vocabulary.
    """
    rows, vocab = logits.shape
    num_tiles = -(-vocab // _TILE)
    tiles_per_part = _FIXED_TILES_PER_PART if deterministic else _tiles_per_part(rows, num_tiles)
    scan = _scan(logits, sampling, 0, tiles_per_part, fast, overlap)
    num_groups = scan.group_best.shape[1]
    group_list = logits.new_empty((rows, num_groups), dtype=torch.int32)
    candidates = logits.new_empty((rows, MAX_CANDIDATES.value), dtype=torch.float32)
    candidate_tokens = logits.new_empty((rows, MAX_CANDIDATES.value), dtype=torch.int32)
    tokens = logits.new_empty(rows, dtype=torch.int64)
    finite = logits.new_empty(rows, dtype=torch.bool)
    _choose_kernel[(rows,)](
        logits,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seeds,
        sampling.positions,
        scan.best,
        scan.token,
        scan.group_best,
        group_list,
        candidates,
        candidate_tokens,
        tokens,
        finite,
        vocab,
        scan.best.shape[1],
        num_groups,
        PARTS_BLOCK=next_power_of_2(num_tiles),
        GROUPS_BLOCK=next_power_of_2(num_groups),
        GROUP=_GROUP,
        FAST=fast,
        OVERLAP=overlap,
        num_warps=_CHOOSE_WARPS,
        launch_pdl=overlap,
    )
    return tokens, finite


def best_of_part(
    logits: torch.Tensor, sampling: DeviceSampling, first_token: int, fast: bool, overlap: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the token that a rank with a part of the vocabulary would draw, without filters.

    Args:
        logits: [num_sampled, token ids of the part] float32, bfloat16 or float16.
        first_token: the first of them, a multiple of 4.

    Returns:
        Each row's best value after noise, [num_sampled] float32, its token id, [num_sampled] int64, and whether all
        logits of a row are finite, [num_sampled] bool.
    """
    rows, size = logits.shape
    scan = _scan(logits, sampling, first_token, _tiles_per_part(rows, -(-size // _TILE)), fast, overlap)
    # Parts are in order of token ids, and the first of equals is taken.
    values, parts = scan.best[:, :, 0].max(dim=1)
    tokens = scan.token[:, :, 0].gather(1, parts[:, None])[:, 0] + first_token
    return values, tokens.long(), scan.token[:, :, 1].sum(dim=1) == 0


@dataclass(frozen=True, slots=True)
class _Scan:
    """What _scan_kernel writes."""

    best: torch.Tensor
    token: torch.Tensor
    group_best: torch.Tensor


def _tiles_per_part(rows: int, num_tiles: int) -> int:
    """As many as leave enough programs."""
    return max(1, min(_MAX_TILES_PER_PART, rows * num_tiles // _MANY_PROGRAMS))


def _scan(
    logits: torch.Tensor, sampling: DeviceSampling, first_token: int, tiles_per_part: int, fast: bool, overlap: bool
) -> _Scan:
    check_contiguous(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    check_contiguous(sampling.seeds, sampling.positions)
    assert first_token % 4 == 0
    rows, vocab = logits.shape
    num_tiles, num_groups = -(-vocab // _TILE), -(-vocab // _GROUP)
    num_parts = -(-num_tiles // tiles_per_part)
    part_best = logits.new_empty((rows, num_parts, 3), dtype=torch.float32)
    part_token = logits.new_empty((rows, num_parts, 2), dtype=torch.int32)
    group_best = logits.new_empty((rows, num_groups), dtype=torch.float32)
    _scan_kernel[(rows, num_parts)](
        logits,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seeds,
        sampling.positions,
        part_best,
        part_token,
        group_best,
        vocab,
        num_parts,
        num_groups,
        tiles_per_part,
        TILE=_TILE,
        FIRST_TOKEN=first_token,
        STAGES=_STAGES,
        GROUP=_GROUP,
        FAST=fast,
        OVERLAP=overlap,
        num_warps=_SCAN_WARPS,
        launch_pdl=overlap,
    )
    return _Scan(part_best, part_token, group_best)


@kernel("num_parts", "tiles_per_part")
def _scan_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    part_best_ptr: tl.tensor,
    part_token_ptr: tl.tensor,
    group_best_ptr: tl.tensor,
    vocab: int,
    num_parts: int,
    num_groups: int,
    tiles_per_part: int,
    TILE: tl.constexpr,
    FIRST_TOKEN: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """One program has tiles_per_part tiles of one row.

    part_best: [num_sampled, num_parts, 3] float32, the best logit with noise, the best scaled logit, and the sum of
    exp(scaled - best scaled); part_token: [num_sampled, num_parts, 2] int32, the token with the best noisy logit, and
    whether some logit is not finite; group_best: [num_sampled, num_groups] float32, best scaled logits. What only
    filters need is written for filtered rows only.
    """
    launch_next(OVERLAP)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    filtered = (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0) | (tl.load(min_p_ptr + row) > 0.0)
    filtered = filtered & (temperature > 0.0)
    inverse = inverse_of(temperature)
    wait_for_inputs(OVERLAP)
    best = tl.full([TILE // 4, 4], float("-inf"), tl.float32)
    best_tokens = tl.zeros([TILE // 4, 4], tl.int32)
    zeros = tl.zeros([TILE // 4, 4], tl.float32)
    highest = tl.full([], float("-inf"), tl.float32)
    mass = tl.zeros([], tl.float32)
    for tile in tl.range(part * tiles_per_part, (part + 1) * tiles_per_part, num_stages=STAGES):
        counters = tile * (TILE // 4) + tl.arange(0, TILE // 4)
        tokens = counters[:, None] * 4 + tl.arange(0, 4)[None, :]
        inside = tokens < vocab
        logits = tl.load(logits_ptr + row * vocab + tokens, mask=inside, other=0.0).to(tl.float32)
        # Stays zero unless there is a NaN or an infinity.
        zeros += logits * 0.0
        scaled = tl.where(inside, logits, float("-inf"))
        noisy = scaled
        if temperature > 0.0:
            scaled = scaled * inverse
            noisy = scaled + gumbel(seed, position, counters + FIRST_TOKEN // 4, FAST)
        best_tokens = tl.where(noisy > best, tokens, best_tokens)
        best = tl.maximum(best, noisy)
        if filtered:
            groups = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
            group_best = tl.max(tl.reshape(scaled, (TILE // GROUP, GROUP)), axis=1)
            tl.store(group_best_ptr + row * num_groups + groups, group_best, mask=groups < num_groups)
            new_highest = tl.maximum(highest, tl.max(group_best, axis=0))
            # A tile past the vocabulary may leave it at -inf, which must not be taken from itself.
            base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            mass = mass * tl.exp(highest - base) + tl.sum(tl.sum(tl.exp(scaled - base), axis=1), axis=0)
            highest = new_highest
    value = tl.max(tl.max(best, axis=1), axis=0)
    token = tl.min(tl.min(tl.where(best == value, best_tokens, vocab), axis=1), axis=0)
    to_best = part_best_ptr + (row * num_parts + part) * 3
    to_token = part_token_ptr + (row * num_parts + part) * 2
    tl.store(to_best, value)
    tl.store(to_token, token)
    tl.store(to_token + 1, (tl.sum(tl.sum(zeros, axis=1), axis=0) != 0.0).to(tl.int32))
    if filtered:
        tl.store(to_best + 1, highest)
        tl.store(to_best + 2, mass)


@kernel("num_parts")
def _choose_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    part_best_ptr: tl.tensor,
    part_token_ptr: tl.tensor,
    group_best_ptr: tl.tensor,
    group_list_ptr: tl.tensor,
    candidates_ptr: tl.tensor,
    candidate_tokens_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    finite_ptr: tl.tensor,
    vocab: int,
    num_parts: int,
    num_groups: int,
    PARTS_BLOCK: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """One program has one row; see _scan_kernel for what it reads and triton_filter for its scratch memory."""
    launch_next(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k = tl.load(temperature_ptr + row), tl.load(top_k_ptr + row)
    top_p, min_p = tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    wait_for_inputs(OVERLAP)
    parts = tl.arange(0, PARTS_BLOCK)
    inside = parts < num_parts
    best = part_best_ptr + (row * num_parts + parts) * 3
    tokens = part_token_ptr + (row * num_parts + parts) * 2
    values = tl.load(best, mask=inside, other=float("-inf"))
    wrong = tl.sum(tl.load(tokens + 1, mask=inside, other=0), axis=0)
    is_best = values == tl.max(values, axis=0)
    token = tl.min(tl.where(is_best, tl.load(tokens, mask=inside, other=vocab), vocab), axis=0)
    filtered = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
    if filtered & (temperature > 0.0) & (wrong == 0):
        tops = tl.load(best + 1, mask=inside, other=float("-inf"))
        highest = tl.max(tops, axis=0)
        mass = tl.sum(tl.load(best + 2, mask=inside, other=0.0) * tl.exp(tops - highest), axis=0)
        token = draw_filtered(
            token,
            highest,
            mass,
            logits_ptr + row * vocab,
            group_best_ptr + row * num_groups,
            group_list_ptr + row * num_groups,
            candidates_ptr + row * MAX_CANDIDATES,
            candidate_tokens_ptr + row * MAX_CANDIDATES,
            inverse_of(temperature),
            top_k,
            top_p,
            min_p,
            tl.load(seeds_ptr + row),
            tl.load(positions_ptr + row),
            vocab,
            num_groups,
            GROUPS_BLOCK,
            GROUP,
            FAST,
        )
    tl.store(tokens_ptr + row, tl.minimum(token, vocab - 1).to(tl.int64))
    tl.store(finite_ptr + row, wrong == 0)
