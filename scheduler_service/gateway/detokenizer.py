"""How do the token ids of one stream become text, piece by piece, without ever a half character?"""

from collections.abc import Collection

import tokenizers
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes, so at most 4 tokens. A longer run without a complete character at its end is rubbish;
# the decode stream decodes the whole run again at each of its tokens, so it is not left to grow.
_MAX_CHARACTER_TOKENS = 4
_MAX_PENDING_TOKENS = 32


class Detokenizer:
    """Incremental decoder of one stream. The pieces joined are the tokenizer's own decoding of all ids.

    What each step returns depends on the ids so far alone, not on when they came: a stream that is resumed from its ids
    goes on with exactly the missing text.

    Args:
        backend: the tokenizer.
        skipped_ids: tokens without text.
    """

    __slots__ = ("_backend", "_context", "_pending", "_rubbish", "_skipped_ids", "_stream")

    def __init__(self, backend: tokenizers.Tokenizer, skipped_ids: Collection[int]) -> None:
        self._backend = backend
        self._skipped_ids = skipped_ids
        self._stream = DecodeStream(skip_special_tokens=False)
        # ids:  | given out ... | context | pending |      context: those whose text was given out last
        self._context: list[int] = []
        self._pending: list[int] = []
        self._rubbish: _RubbishDecoder | None = None

    def step(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain; empty within a character."""
        if token_id in self._skipped_ids:
            return ""
        if self._rubbish is not None:
            return self._step_in_rubbish(self._rubbish, token_id)
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            # With this token earlier bytes, given out as a character, decode as rubbish: go on after them.
            return self._restart_after(self._pending, self._decode(self._pending))
        if text is not None:
            self._context, self._pending = self._pending, []
            return text
        if len(self._pending) < _MAX_PENDING_TOKENS:
            return ""
        return self._give_out_pending()

    def flush(self) -> str:
        """End the stream: return the text still held back, with U+FFFD for bytes that are no character."""
        if self._rubbish is not None:
            return self._rubbish.flush()
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :] if self._pending else ""

    def _give_out_pending(self) -> str:
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)
        if text == before:
            return self._restart_after(self._context, "")
        self._rubbish = _RubbishDecoder(self._backend, before, self._context)
        return "".join(self._rubbish.step(token_id) for token_id in self._pending)

    def _step_in_rubbish(self, rubbish: "_RubbishDecoder", token_id: int) -> str:
        text = rubbish.step(token_id)
        return self._restart_after(rubbish.window, text) if rubbish.is_over else text

    def _restart_after(self, context: list[int], text: str) -> str:
        """Begin a new decode stream that knows `context` as given out. Returns `text`."""
        self._stream = DecodeStream(ids=context, skip_special_tokens=False)
        self._context, self._pending = context, []
        self._rubbish = None
        return text

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=False)
        return text


class _RubbishDecoder:
    """Decodes a run of bytes that are no characters, holding back the last U+FFFD alone: a character may begin there.

    Args:
        given_out: text of `context`.
        context: ids before the run.
    """

    __slots__ = ("_backend", "_given_out", "is_over", "window")

    def __init__(self, backend: tokenizers.Tokenizer, given_out: str, context: list[int]) -> None:
        self._backend = backend
        self._given_out = given_out
        self.window = list(context)
        self.is_over = False

    def step(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain."""
        self.window.append(token_id)
        text = self._decode()
        self.is_over = not text.endswith(_REPLACEMENT)
        certain = text.removesuffix(_REPLACEMENT)
        new = certain[len(self._given_out) :]
        if not self.is_over:
            self.window = self.window[-_MAX_CHARACTER_TOKENS:]
            certain = self._decode().removesuffix(_REPLACEMENT)
        self._given_out = certain
        return new

    def flush(self) -> str:
        """Return what is held back."""
        return self._decode()[len(self._given_out) :]

    def _decode(self) -> str:
        text: str = self._backend.decode(self.window, skip_special_tokens=False)
        return text
