"""Which tokens does a request want to be drawn, or not to be?"""

import math
from array import array
from collections.abc import Iterable, Sequence

from pagewire.ipc.requests import MAX_BAD_WORD_TOKENS, TokenRules
from pagewire.v1 import generate_pb2
from scheduler_service.gateway.exceptions import InvalidArgumentError
from scheduler_service.gateway.generation import int32_array
from scheduler_service.gateway.prompts import PromptReader
from scheduler_service.gateway.validation import check_token_ids

_MAX_BIASES = 1024
_MAX_BIAS = 100.0
_MAX_BAD_WORDS = 64
_MAX_BAD_WORD_CHARS = 1024


async def to_token_rules(
    params: generate_pb2.SamplingParams, prompts: PromptReader, vocab_size: int
) -> TokenRules | None:
    """Check and gather them; None if there are none.

    Raises:
        InvalidArgumentError: a token does not exist, a number is out of its range, or no token is left to draw.
    """
    allowed = _unique(params.allowed_token_ids, "sampling.allowed_token_ids", vocab_size)
    banned = _unique(params.banned_token_ids, "sampling.banned_token_ids", vocab_size)
    if (allowed and set(allowed) <= set(banned)) or len(banned) == vocab_size:
        raise InvalidArgumentError("sampling.banned_token_ids", "leaves no token that may be produced")
    biases = _check_biases(params, vocab_size)
    bad_words = await _read_bad_words(params.bad_words, prompts)
    rules = TokenRules(
        allowed_ids=allowed.tobytes(),
        banned_ids=banned.tobytes(),
        bias_ids=int32_array(biases).tobytes(),
        biases=array("f", biases.values()).tobytes(),
        bad_words=tuple(word.tobytes() for word in bad_words),
    )
    return None if rules == TokenRules() else rules


def _unique(token_ids: Sequence[int], field: str, vocab_size: int) -> "array[int]":
    check_token_ids(token_ids, vocab_size, field)
    return int32_array(sorted(set(token_ids)))


def _check_biases(params: generate_pb2.SamplingParams, vocab_size: int) -> dict[int, float]:
    biases = dict(params.logit_bias)
    if len(biases) > _MAX_BIASES:
        raise InvalidArgumentError("sampling.logit_bias", f"has {len(biases)} tokens, may have {_MAX_BIASES}")
    check_token_ids(list(biases), vocab_size, "sampling.logit_bias")
    for token_id, bias in biases.items():
        if not math.fabs(bias) <= _MAX_BIAS:
            raise InvalidArgumentError(
                f"sampling.logit_bias[{token_id}]", f"is {bias:g}, must be -{_MAX_BIAS:g} to {_MAX_BIAS:g}"
            )
    return biases


async def _read_bad_words(words: Sequence[str], prompts: PromptReader) -> Iterable["array[int]"]:
    """The token ids of each word as it begins a text, and as it stands after a space."""
    if len(words) > _MAX_BAD_WORDS:
        raise InvalidArgumentError("sampling.bad_words", f"has {len(words)} texts, may have {_MAX_BAD_WORDS}")
    found: dict[bytes, array[int]] = {}
    for index, word in enumerate(words):
        if not 1 <= len(word) <= _MAX_BAD_WORD_CHARS:
            raise InvalidArgumentError(
                f"sampling.bad_words[{index}]", f"has {len(word)} characters, must have 1 to {_MAX_BAD_WORD_CHARS}"
            )
        bare = word.lstrip(" ") or word
        for text in (bare, f" {bare}"):
            token_ids = int32_array(await prompts.read_text(text, add_special_tokens=False))
            if len(token_ids) > MAX_BAD_WORD_TOKENS:
                raise InvalidArgumentError(
                    f"sampling.bad_words[{index}]", f"has {len(token_ids)} tokens, may have {MAX_BAD_WORD_TOKENS}"
                )
            found[token_ids.tobytes()] = token_ids
    return found.values()
