"""How is a token drawn under min-p, top-k and top-p without sorting the vocabulary?

All three keep the tokens at or above some value. Two ways find the token that has the best noisy logit among those:

few candidates    With top-k: the k-th best of the groups' best logits is at most the k-th best logit, so that every
                  token that counts is among those at or above it. They are gathered, and the exact edges are found
                  among them by bisection.
rejection         Without: the best noisy token of all is the result if it is kept. To know, only what is more likely
                  than it must be added up. If it is not kept, nothing at or below its value is, and the search goes
                  on above it. A token is accepted with a chance of at least top_p.

Logits are compared as integers that order as floats do. A group of GROUP tokens is read only if its best is high
enough: mostly few are. Source of the second way: the idea is FlashInfer's sorting-free sampling, here with noise that
is fixed in advance, so that the draw is the one a sort would give.
"""

import triton.language as tl

from gpu_worker.kernels.triton_gumbel import gumbel, gumbel_of_tokens
from gpu_worker.kernels.triton_jit import device_function

MAX_CANDIDATES = tl.constexpr(4096)
# The key of -inf; below it are no keys.
_LOWEST_KEY = tl.constexpr(-2139095041)
_NO_KEY = tl.constexpr(-2147483648)
# Groups read at a time.
_GROUPS = tl.constexpr(16)


@device_function
def draw_filtered(
    token: tl.tensor,
    highest: tl.tensor,
    mass: tl.tensor,
    logits_ptr: tl.tensor,
    group_best_ptr: tl.tensor,
    list_ptr: tl.tensor,
    candidates_ptr: tl.tensor,
    candidate_tokens_ptr: tl.tensor,
    inverse: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUPS_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
) -> tl.tensor:
    """The token that one row draws.

    Args:
        token: the draw without filters.
        inverse: of the temperature.
        highest, mass: of the row's scaled logits the largest, and the sum of exp(scaled - highest).
        logits_ptr, group_best_ptr: the row's logits, and each group's best scaled one.
        list_ptr, candidates_ptr, candidate_tokens_ptr: scratch of num_groups and twice MAX_CANDIDATES elements.
    """
    groups = tl.arange(0, GROUPS_BLOCK)
    best = tl.load(group_best_ptr + groups, mask=groups < num_groups, other=float("-inf"))
    # Groups that do not exist are below every bound.
    group_keys = tl.where(groups < num_groups, _key_of(best), _NO_KEY)
    end = _key_of(highest) + 1
    least = _key_of(highest + tl.log(min_p))
    count = tl.full([], MAX_CANDIDATES + 1, tl.int32)
    if top_k > 0:
        exists = (groups < num_groups).to(tl.int32)
        # With fewer groups than top_k this is -inf, which bounds nothing.
        bound = _edge(group_keys, exists, top_k, tl.full([], _LOWEST_KEY, tl.int32), end)
        num_listed = _list_groups(group_keys, tl.maximum(bound, least), list_ptr, GROUPS_BLOCK)
        count = _gather(
            logits_ptr, list_ptr, num_listed, tl.maximum(bound, least), candidates_ptr, candidate_tokens_ptr,
            inverse, vocab, num_groups, GROUP,
        )  # fmt: skip
        if count > MAX_CANDIDATES:
            least = tl.maximum(
                least,
                _kth_key(logits_ptr, list_ptr, num_listed, top_k, bound, end, inverse, vocab, num_groups, GROUP),
            )
    if count <= MAX_CANDIDATES:
        token = _draw_candidate(
            candidates_ptr, candidate_tokens_ptr, count, highest, least, end, top_k, top_p, seed, position, vocab, FAST
        )
    else:
        token = _draw_by_rejection(
            token, highest, mass, least, group_keys, logits_ptr, list_ptr, inverse, top_p, seed, position, vocab,
            num_groups, GROUPS_BLOCK, GROUP, FAST,
        )  # fmt: skip
    return token


@device_function
def inverse_of(temperature: tl.tensor) -> tl.tensor:
    """What logits are multiplied by: finite, so that a zero stays one."""
    return tl.minimum(1.0 / temperature, 3e38)


@device_function
def _key_of(value: tl.tensor) -> tl.tensor:
    """An int32 that orders as the float32 does."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@device_function
def _middle(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """floor((low + high) / 2), without overflow."""
    return (low & high) + ((low ^ high) >> 1)


@device_function
def _edge(keys: tl.tensor, weights: tl.tensor, goal: tl.tensor, low: tl.tensor, end: tl.tensor) -> tl.tensor:
    """The largest key from `low` on, before `end`, at or above which the weights add up to `goal`; `low` if none."""
    while low + 1 < end:
        middle = _middle(low, end)
        reached = tl.sum(tl.where(keys >= middle, weights, 0), axis=0) >= goal
        low = tl.where(reached, middle, low)
        end = tl.where(reached, end, middle)
    return low


@device_function
def _list_groups(group_keys: tl.tensor, least: tl.tensor, list_ptr: tl.tensor, GROUPS_BLOCK: tl.constexpr) -> tl.tensor:
    """List the groups whose best is at least `least`, in order; how many there are."""
    listed = (group_keys >= least).to(tl.int32)
    places = tl.cumsum(listed, axis=0) - 1
    # Other warps may still read the list before, and will read this one.
    tl.debug_barrier()
    tl.store(list_ptr + places, tl.arange(0, GROUPS_BLOCK), mask=listed > 0)
    tl.debug_barrier()
    return tl.sum(listed, axis=0)


@device_function
def _read_groups(
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    first: tl.tensor,
    num_listed: tl.tensor,
    inverse: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUP: tl.constexpr,
) -> tl.tuple:
    """Listed groups from `first` on: their numbers, [groups], and token ids and scaled logits, [groups, GROUP]."""
    places = first + tl.arange(0, _GROUPS)
    groups = tl.load(list_ptr + places, mask=places < num_listed, other=num_groups)
    tokens = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    logits = tl.load(logits_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32)
    return groups, tokens, logits * inverse


@device_function
def _gather(
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    num_listed: tl.tensor,
    least: tl.tensor,
    candidates_ptr: tl.tensor,
    candidate_tokens_ptr: tl.tensor,
    inverse: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Write scaled logits and ids of the listed groups' tokens at or above `least`; how many there are.

    No more are written than there is room for.
    """
    count = tl.zeros([], tl.int32)
    for first in range(0, num_listed, _GROUPS):
        _, tokens, scaled = _read_groups(logits_ptr, list_ptr, first, num_listed, inverse, vocab, num_groups, GROUP)
        tokens, scaled = tokens.reshape(_GROUPS * GROUP), scaled.reshape(_GROUPS * GROUP)
        taken = (_key_of(scaled) >= least) & (tokens < vocab)
        places = count + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        has_room = taken & (places < MAX_CANDIDATES)
        tl.store(candidates_ptr + places, scaled, mask=has_room)
        tl.store(candidate_tokens_ptr + places, tokens, mask=has_room)
        count += tl.sum(taken.to(tl.int32), axis=0)
    tl.debug_barrier()
    return count


@device_function
def _kth_key(
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    num_listed: tl.tensor,
    top_k: tl.tensor,
    low: tl.tensor,
    end: tl.tensor,
    inverse: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """The key of the top_k-th best token, by bisection over the listed groups' tokens: slow, for a large top_k."""
    while low + 1 < end:
        middle = _middle(low, end)
        counts = tl.zeros([_GROUPS, GROUP], tl.int32)
        for first in range(0, num_listed, _GROUPS):
            _, tokens, scaled = _read_groups(logits_ptr, list_ptr, first, num_listed, inverse, vocab, num_groups, GROUP)
            counts += ((_key_of(scaled) >= middle) & (tokens < vocab)).to(tl.int32)
        reached = tl.sum(tl.sum(counts, axis=1), axis=0) >= top_k
        low = tl.where(reached, middle, low)
        end = tl.where(reached, end, middle)
    return low


@device_function
def _draw_candidate(
    candidates_ptr: tl.tensor,
    candidate_tokens_ptr: tl.tensor,
    count: tl.tensor,
    highest: tl.tensor,
    least: tl.tensor,
    end: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    vocab: int,
    FAST: tl.constexpr,
) -> tl.tensor:
    """The draw among the gathered candidates, which hold every token that may be kept."""
    places = tl.arange(0, MAX_CANDIDATES)
    exists = places < count
    scaled = tl.load(candidates_ptr + places, mask=exists, other=float("-inf"))
    tokens = tl.load(candidate_tokens_ptr + places, mask=exists, other=0)
    keys = _key_of(scaled)
    lowest = tl.min(tl.where(exists, keys, end), axis=0)
    least = tl.maximum(least, _edge(keys, exists.to(tl.int32), top_k, lowest, end))
    if top_p < 1.0:
        weights = tl.where(keys >= least, tl.exp(scaled - highest), 0.0)
        least = _edge(keys, weights, top_p * tl.sum(weights, axis=0), least, end)
    noisy = tl.where((keys >= least) & exists, scaled + gumbel_of_tokens(seed, position, tokens, FAST), float("-inf"))
    return tl.min(tl.where(noisy == tl.max(noisy, axis=0), tokens, vocab), axis=0)


@device_function
def _draw_by_rejection(
    token: tl.tensor,
    highest: tl.tensor,
    mass: tl.tensor,
    least: tl.tensor,
    group_keys: tl.tensor,
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    inverse: tl.tensor,
    top_p: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUPS_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
) -> tl.tensor:
    """The draw among the tokens at or above `least`, of which those are kept that less than top_p of the mass exceeds.

    Ends: a rejected token's value is a bound that rises, and a token with the highest value is always kept.
    """
    if (least > _LOWEST_KEY) & (top_p < 1.0):
        num_listed = _list_groups(group_keys, least, list_ptr, GROUPS_BLOCK)
        mass = _mass_from(logits_ptr, list_ptr, num_listed, least, highest, inverse, vocab, num_groups, GROUP)
    goal = tl.where(top_p < 1.0, top_p * mass, float("inf"))
    top = _key_of(highest)
    key = _key_of(tl.load(logits_ptr + tl.minimum(token, vocab - 1)).to(tl.float32) * inverse)
    # A token below `least` is rejected: the search starts at `least`, else above the token.
    above = tl.where(key < least, least, key + 1)
    searching = key < top
    while searching:
        num_listed = _list_groups(group_keys, above, list_ptr, GROUPS_BLOCK)
        exceeding = _mass_from(logits_ptr, list_ptr, num_listed, above, highest, inverse, vocab, num_groups, GROUP)
        rejected = (key < least) | (exceeding >= goal)
        if rejected:
            token, key = _best_from(
                logits_ptr, list_ptr, num_listed, above, inverse, seed, position, vocab, num_groups, GROUP, FAST
            )
            above = key + 1
        searching = rejected & (key < top)
    return token


@device_function
def _mass_from(
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    num_listed: tl.tensor,
    least: tl.tensor,
    highest: tl.tensor,
    inverse: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Sum of exp(scaled - highest) over the listed groups' tokens at or above `least`."""
    sums = tl.zeros([_GROUPS, GROUP], tl.float32)
    for first in range(0, num_listed, _GROUPS):
        _, _, scaled = _read_groups(logits_ptr, list_ptr, first, num_listed, inverse, vocab, num_groups, GROUP)
        sums += tl.where(_key_of(scaled) >= least, tl.exp(scaled - highest), 0.0)
    return tl.sum(tl.sum(sums, axis=1), axis=0)


@device_function
def _best_from(
    logits_ptr: tl.tensor,
    list_ptr: tl.tensor,
    num_listed: tl.tensor,
    least: tl.tensor,
    inverse: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    vocab: int,
    num_groups: int,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
) -> tl.tuple:
    """The token with the best noisy logit among the listed groups' tokens at or above `least`, and its key."""
    best = tl.full([_GROUPS, GROUP], float("-inf"), tl.float32)
    best_tokens = tl.full([_GROUPS, GROUP], 0, tl.int32)
    for first in range(0, num_listed, _GROUPS):
        groups, tokens, scaled = _read_groups(
            logits_ptr, list_ptr, first, num_listed, inverse, vocab, num_groups, GROUP
        )
        counters = groups[:, None] * (GROUP // 4) + tl.arange(0, GROUP // 4)[None, :]
        noise = gumbel(seed, position, counters.reshape(_GROUPS * GROUP // 4), FAST).reshape(_GROUPS, GROUP)
        noisy = tl.where(_key_of(scaled) >= least, scaled + noise, float("-inf"))
        best_tokens = tl.where(noisy > best, tokens, best_tokens)
        best = tl.maximum(best, noisy)
    highest = tl.max(tl.max(best, axis=1), axis=0)
    token = tl.min(tl.min(tl.where(best == highest, best_tokens, vocab), axis=1), axis=0)
    key = _key_of(tl.load(logits_ptr + tl.minimum(token, vocab - 1)).to(tl.float32) * inverse)
    return token, key
