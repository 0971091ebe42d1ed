"""Which part of a batch's attention does each program do?

The lists are made on the device from the lengths that lie there, so a captured graph that starts with the plan serves
every batch that fits its sizes, and the host does nothing. Each list is sorted longest first: what runs last is short,
and no multiprocessor works alone at the end. Nothing is sorted for it: an item's place is the count of those before
it, and every program of a plan counts for its own sequences.

    decode item    (sequence, first key, end of keys, first item of the sequence, items of the sequence), 3 unused
    prefill item   (sequence, tile of its queries)

Items past the last have no keys, and sequence -1.
"""

from dataclasses import dataclass

import torch
import triton.language as tl

from gpu_worker.kernels.triton_jit import device_function, kernel

DECODE_FIELDS = tl.constexpr(8)
PREFILL_FIELDS = tl.constexpr(2)

# Tokens a split sequence's part has at least and is a multiple of: a tile of the decode kernel.
_SPLIT_STEP = 64
# A part is this share, in eighths, of what each program slot of the device has to do on average.
_SHARE_EIGHTHS = 4
# One program merges all parts of a sequence.
_MAX_PARTS = 32
_SEQUENCES_PER_PROGRAM = 16
_TILES_PER_STEP = 16
_MAX_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Work on the sequences that compute one token.

    items: [max_items, 8] int32. arrivals: [max_items, num_kv_heads] int32, zeros, in which the parts of a sequence
    count themselves.
    """

    items: torch.Tensor
    arrivals: torch.Tensor


def plan_decode(
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    window: int | None,
    num_kv_heads: int,
    num_slots: int,
) -> DecodePlan:
    """Split long sequences so that all program slots of the device have work.

    Args:
        query_start: [num_seqs + 1] int32, seq_lens: [num_seqs] int32.
        window: how many of the last keys are seen, None for all.
        num_slots: programs of the decode kernel that run at a time.
    """
    num_seqs = seq_lens.shape[0]
    max_items = max_decode_items(num_seqs, num_kv_heads, num_slots)
    items = seq_lens.new_empty((max_items, DECODE_FIELDS.value))
    _plan_decode_kernel[(-(-num_seqs // _SEQUENCES_PER_PROGRAM),)](
        query_start,
        seq_lens,
        items,
        num_seqs,
        max_items,
        WINDOW=window or 0,
        NUM_KV_HEADS=num_kv_heads,
        NUM_SLOTS=num_slots,
        STEP=_SPLIT_STEP,
        EIGHTHS=_SHARE_EIGHTHS,
        MAX_PARTS=_MAX_PARTS,
        ROWS=_SEQUENCES_PER_PROGRAM,
        COLUMNS=_MAX_COLUMNS,
    )
    # A launch of its own and without overlap, so that the items are seen by kernels that read them before they wait.
    return DecodePlan(items, seq_lens.new_zeros((max_items, num_kv_heads)))


def max_decode_items(num_seqs: int, num_kv_heads: int, num_slots: int) -> int:
    """How many items a decode plan of `num_seqs` sequences can have.

    A sequence has at most 1 + length / part items, and all lengths together are at most num_slots / num_kv_heads *
    8 / _SHARE_EIGHTHS parts.
    """
    return num_seqs + -(-num_slots * 8 // (num_kv_heads * _SHARE_EIGHTHS))


def plan_prefill(
    query_start: torch.Tensor, seq_lens: torch.Tensor, num_tokens: int, tile_tokens: int, min_queries: int = 2
) -> torch.Tensor:
    """Cut the queries of the sequences that compute several tokens into tiles of `tile_tokens`: [max_items, 2] int32.

    Args:
        query_start: [num_seqs + 1] int32, seq_lens: [num_seqs] int32.
        min_queries: with 1 those that compute one token get a tile too.
    """
    num_seqs = seq_lens.shape[0]
    max_items = num_tokens // tile_tokens + min(num_seqs, num_tokens // min_queries)
    items = seq_lens.new_empty((max_items, PREFILL_FIELDS.value))
    _plan_prefill_kernel[(num_seqs,)](
        query_start,
        seq_lens,
        items,
        num_seqs,
        max_items,
        TILE_TOKENS=tile_tokens,
        MIN_QUERIES=min_queries,
        ROWS=_TILES_PER_STEP,
        COLUMNS=_MAX_COLUMNS,
    )
    return items


@device_function
def _decode_lengths(
    query_start_ptr: tl.tensor, seq_lens_ptr: tl.tensor, sequences: tl.tensor, num_seqs: int, WINDOW: tl.constexpr
) -> tl.tensor:
    """How many keys each sequence's one query sees; 0 for sequences that compute none or several tokens."""
    real = sequences < num_seqs
    queries = tl.load(query_start_ptr + sequences + 1, mask=real, other=0)
    queries -= tl.load(query_start_ptr + sequences, mask=real, other=0)
    lengths = tl.load(seq_lens_ptr + sequences, mask=real & (queries == 1), other=0)
    if WINDOW > 0:
        lengths = tl.minimum(lengths, WINDOW)
    return lengths


@device_function
def _part_tokens(lengths: tl.tensor, share: tl.tensor, STEP: tl.constexpr, MAX_PARTS: tl.constexpr) -> tl.tensor:
    """Into parts of how many keys each sequence is cut: about `share`, equal parts, a multiple of STEP above 0."""
    parts = tl.minimum(tl.maximum((lengths + share // 2) // share, 1), MAX_PARTS)
    return tl.maximum((lengths + parts - 1) // parts + STEP - 1, STEP) // STEP * STEP


@kernel("num_seqs", "max_items")
def _plan_decode_kernel(
    query_start_ptr: tl.tensor,
    seq_lens_ptr: tl.tensor,
    items_ptr: tl.tensor,
    num_seqs: int,
    max_items: int,
    WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    STEP: tl.constexpr,
    EIGHTHS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program makes the items of ROWS sequences. query_start: [num_seqs + 1], seq_lens: [num_seqs]."""
    total = tl.zeros([], tl.int32)
    for first in range(0, num_seqs, COLUMNS):
        others = first + tl.arange(0, COLUMNS)
        total += tl.sum(_decode_lengths(query_start_ptr, seq_lens_ptr, others, num_seqs, WINDOW), axis=0)
    share = ((total.to(tl.int64) * (NUM_KV_HEADS * EIGHTHS) + 8 * NUM_SLOTS - 1) // (8 * NUM_SLOTS)).to(tl.int32)
    share = tl.maximum((share + STEP - 1) // STEP * STEP, STEP)

    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lengths = _decode_lengths(query_start_ptr, seq_lens_ptr, own, num_seqs, WINDOW)
    tokens = _part_tokens(lengths, share, STEP, MAX_PARTS)
    parts = (lengths + tokens - 1) // tokens
    place = tl.zeros([ROWS], tl.int32)
    num_items = 0
    for first in range(0, num_seqs, COLUMNS):
        others = first + tl.arange(0, COLUMNS)
        their_lengths = _decode_lengths(query_start_ptr, seq_lens_ptr, others, num_seqs, WINDOW)
        their_tokens = _part_tokens(their_lengths, share, STEP, MAX_PARTS)
        their_parts = (their_lengths + their_tokens - 1) // their_tokens
        longer = their_lengths[None, :] > lengths[:, None]
        same = their_lengths[None, :] == lengths[:, None]
        before = longer | (same & (others[None, :] < own[:, None]))
        place += tl.sum(tl.where(before, their_parts[None, :], 0), axis=1)
        num_items += tl.sum(their_parts, axis=0)

    seq_lens = tl.load(seq_lens_ptr + own, mask=own < num_seqs, other=0)
    start = seq_lens - lengths
    for part in range(tl.max(parts, axis=0)):
        exists = part < parts
        item = items_ptr + (place + part) * DECODE_FIELDS
        tl.store(item, own, mask=exists)
        tl.store(item + 1, start + part * tokens, mask=exists)
        tl.store(item + 2, tl.minimum(start + (part + 1) * tokens, seq_lens), mask=exists)
        tl.store(item + 3, place, mask=exists)
        tl.store(item + 4, parts, mask=exists)
    if tl.program_id(0) == 0:
        for first in range(num_items, max_items, COLUMNS):
            rest = first + tl.arange(0, COLUMNS)
            tl.store(items_ptr + rest * DECODE_FIELDS, -1, mask=rest < max_items)
            tl.store(items_ptr + rest * DECODE_FIELDS + 1, 0, mask=rest < max_items)
            tl.store(items_ptr + rest * DECODE_FIELDS + 2, 0, mask=rest < max_items)


@device_function
def _prefill_tiles(
    query_start_ptr: tl.tensor,
    seq_lens_ptr: tl.tensor,
    sequences: tl.tensor,
    num_seqs: int,
    TILE_TOKENS: tl.constexpr,
    MIN_QUERIES: tl.constexpr,
) -> tl.tuple:
    """How many keys lie before each sequence's queries, and its tiles; none for too few queries, nor for padding."""
    real = sequences < num_seqs
    queries = tl.load(query_start_ptr + sequences + 1, mask=real, other=0)
    queries -= tl.load(query_start_ptr + sequences, mask=real, other=0)
    seq_lens = tl.load(seq_lens_ptr + sequences, mask=real, other=0)
    has_work = (queries >= MIN_QUERIES) & (seq_lens > 0)
    return seq_lens - queries, tl.where(has_work, (queries + TILE_TOKENS - 1) // TILE_TOKENS, 0)


@kernel("num_seqs", "max_items")
def _plan_prefill_kernel(
    query_start_ptr: tl.tensor,
    seq_lens_ptr: tl.tensor,
    items_ptr: tl.tensor,
    num_seqs: int,
    max_items: int,
    TILE_TOKENS: tl.constexpr,
    MIN_QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program makes the items of one sequence. A tile's work are the keys up to its end.

    Another sequence has tiles with more work from tile floor((work - its context) / TILE_TOKENS) on, and tiles with
    as much from ceil(...) - 1 on. query_start: [num_seqs + 1], seq_lens: [num_seqs].
    """
    own = tl.program_id(0)
    context, num_tiles = _prefill_tiles(query_start_ptr, seq_lens_ptr, own, num_seqs, TILE_TOKENS, MIN_QUERIES)
    num_items = 0
    for first_tile in range(0, tl.maximum(num_tiles, 1), ROWS):
        tiles = first_tile + tl.arange(0, ROWS)
        work = context + (tiles + 1) * TILE_TOKENS
        place = tl.zeros([ROWS], tl.int32)
        num_items = 0
        for first in range(0, num_seqs, COLUMNS):
            others = first + tl.arange(0, COLUMNS)
            contexts, counts = _prefill_tiles(query_start_ptr, seq_lens_ptr, others, num_seqs, TILE_TOKENS, MIN_QUERIES)
            ahead = tl.maximum(work[:, None] - contexts[None, :], 0)
            more = counts[None, :] - ahead // TILE_TOKENS
            as_much = counts[None, :] - tl.maximum((ahead + TILE_TOKENS - 1) // TILE_TOKENS - 1, 0)
            before = tl.where((others < own)[None, :], as_much, more)
            place += tl.sum(tl.maximum(before, 0), axis=1)
            num_items += tl.sum(counts, axis=0)
        tl.store(items_ptr + place * PREFILL_FIELDS, own, mask=tiles < num_tiles)
        tl.store(items_ptr + place * PREFILL_FIELDS + 1, tiles, mask=tiles < num_tiles)
    if own == 0:
        for first in range(num_items, max_items, COLUMNS):
            rest = first + tl.arange(0, COLUMNS)
            tl.store(items_ptr + rest * PREFILL_FIELDS, -1, mask=rest < max_items)
