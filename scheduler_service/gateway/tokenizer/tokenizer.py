"""How does text become token ids and back? The model's tokenizer, with its special tokens known."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import tokenizers

from scheduler_service.gateway.detokenizer import Detokenizer
from scheduler_service.gateway.tokenizer.token_bytes import token_bytes

_MAX_KNOWN_TOKENS = 16_384


class Tokenizer:
    """One model's tokenizer. Immutable, so threads may share it.

    Args:
        backend: encodes and decodes; its post-processor adds the special tokens of plain text.
        special_tokens: role to token text, for example {"bos_token": "<s>"}; chat templates read it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._token_bytes = lru_cache(_MAX_KNOWN_TOKENS)(partial(token_bytes, backend))
        self.special_tokens = dict(special_tokens)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenize. Long texts take a millisecond per 2,000 characters, during which the GIL is free."""
        # The batch call frees the GIL and skips the character offsets; encode() does neither.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Turn token ids into text; ids that the tokenizer does not know have none."""
        # The batch call frees the GIL.
        (text,) = self._backend.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)
        return text

    def bytes_of(self, token_id: int) -> bytes:
        """What one token stands for in the midst of a text, also where that is a part of a character."""
        return self._token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether it is a special token, which most texts are given without."""
        return token_id in self._special_ids

    def to_json(self) -> str:
        """The content of a tokenizer.json that makes the same tokenizer."""
        text: str = self._backend.to_str()
        return text

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text; None if there is no such token."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """Start to turn the token ids of one stream into text."""
        return Detokenizer(self._backend, self._special_ids if skip_special_tokens else frozenset())
