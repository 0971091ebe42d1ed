"""Which tokens may a sequence draw, and which are made more or less likely?

A token that may not be drawn keeps a finite logit, so that a rule is never taken for a fault of the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.sampling.sampler import on_device_of
from pagewire.ipc.requests import MAX_BAD_WORD_TOKENS, TokenRules

# What is allowed and banned, as the end of a sequence before its time may be, is drawn rather than what is not allowed.
_BANNED, _NOT_ALLOWED = -1e30, -1e31
_NO_RULES = TokenRules()

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class SlotRules:
    """The rules of one sequence. `end_ids` may not be drawn before it has min_tokens output tokens.

    heads, head_lens, last_ids: bad words of several tokens, [num_words, longest head], [num_words], [num_words]. Heads
    are all tokens but the last, aligned at their ends, after -1.
    """

    allowed_ids: Ints
    banned_ids: Ints
    bias_ids: Ints
    biases: npt.NDArray[np.float32]
    heads: Ints
    head_lens: Ints
    last_ids: Ints
    end_ids: Ints
    min_tokens: int

    @classmethod
    def of(cls, rules: TokenRules | None, end_ids: bytes, min_tokens: int) -> "SlotRules | None":
        """Unpack what a message says; None for no rule at all."""
        if rules is None and min_tokens == 0:
            return None
        rules = rules or _NO_RULES
        words = [_ints(word) for word in rules.bad_words]
        single = [word for word in words if len(word) == 1]
        words = [word for word in words if len(word) > 1]
        heads = np.full((len(words), MAX_BAD_WORD_TOKENS - 1), -1)
        for head, word in zip(heads, words, strict=True):
            head[len(head) - len(word) + 1 :] = word[:-1]
        return cls(
            allowed_ids=_ints(rules.allowed_ids),
            banned_ids=np.concatenate([_ints(rules.banned_ids), *single]),
            bias_ids=_ints(rules.bias_ids),
            biases=np.frombuffer(rules.biases, dtype="<f4"),
            heads=heads,
            head_lens=(heads >= 0).sum(axis=1),
            last_ids=np.array([word[-1] for word in words], dtype=np.int64),
            end_ids=_ints(end_ids),
            min_tokens=min_tokens,
        )


class RuledRow(msgspec.Struct, frozen=True):
    """A sampled row with rules, and where its sequence stands."""

    row: int
    slot: int
    num_prompt: int
    num_tokens: int
    rules: SlotRules

    @property
    def banned_ids(self) -> Ints:
        """What may not be drawn now, whatever came before."""
        rules = self.rules
        if self.num_tokens - self.num_prompt >= rules.min_tokens:
            return rules.banned_ids
        return np.concatenate((rules.banned_ids, rules.end_ids))

    @property
    def open_words(self) -> Ints:
        """The bad words that the next token could end: their heads fit into the output."""
        return np.flatnonzero(self.rules.head_lens <= self.num_tokens - self.num_prompt)


def apply_rules(logits: torch.Tensor, rows: list[RuledRow], token_ids: torch.Tensor) -> None:
    """Change the logits of rows with rules: allowed tokens, then bad words, banned tokens and biases.

    Args:
        logits: [num_sampled, vocab] float32, changed in place.
        token_ids: [max_num_seqs, width] int32, tokens of all slots.
    """
    if not rows:
        return
    restricted = [ruled for ruled in rows if len(ruled.rules.allowed_ids)]
    if restricted:
        places = _places(logits, ((ruled.row, ruled.rules.allowed_ids) for ruled in restricted))
        kept = logits[places]
        logits.index_fill_(0, on_device_of(logits, np.array([ruled.row for ruled in restricted])), _NOT_ALLOWED)
        logits.index_put_(places, kept)
    _ban_ends_of_words(logits, rows, token_ids)
    places = _places(logits, ((ruled.row, ruled.banned_ids) for ruled in rows))
    logits.index_put_(places, logits.new_full((), _BANNED))
    places = _places(logits, ((ruled.row, ruled.rules.bias_ids) for ruled in rows))
    biases = on_device_of(logits, np.concatenate([ruled.rules.biases for ruled in rows]))
    logits.index_put_(places, biases, accumulate=True)


def _ban_ends_of_words(logits: torch.Tensor, rows: list[RuledRow], token_ids: torch.Tensor) -> None:
    """Ban each bad word's last token where the others are the last of the output.

    All words are compared side by side, aligned at their ends.
    """
    parts = []
    for ruled in rows:
        words = ruled.open_words
        if len(words):
            numbers = np.tile((ruled.row, ruled.slot, ruled.num_tokens), (len(words), 1))
            parts.append(np.concatenate((ruled.rules.heads[words], numbers, ruled.rules.last_ids[words, None]), axis=1))
    if not parts:
        return
    longest = MAX_BAD_WORD_TOKENS - 1
    there = on_device_of(logits, np.concatenate(parts))
    wanted, (word_rows, slots, num_tokens, last_ids) = there[:, :longest], there[:, longest:].T
    positions = num_tokens[:, None] - longest + torch.arange(longest, device=logits.device)
    found = token_ids[slots[:, None], positions.clamp(min=0)]
    is_complete = ((found == wanted) | (wanted < 0)).all(dim=1)
    logits.index_put_((word_rows, last_ids), is_complete * _BANNED, accumulate=True)


def _places(logits: torch.Tensor, entries: Iterable[tuple[int, Ints]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and token ids of logits, from each row's token ids."""
    pairs = list(entries)
    rows = np.repeat([row for row, _ in pairs], [len(ids) for _, ids in pairs])
    rows_and_ids = on_device_of(logits, np.stack((rows, np.concatenate([ids for _, ids in pairs]))))
    return rows_and_ids[0], rows_and_ids[1]


def _ints(data: bytes) -> Ints:
    return np.frombuffer(data, dtype="<i4").astype(np.int64)
