"""Which bytes of the output does one token stand for? Exact also where it is a part of a character."""

import re

import tokenizers

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# Byte-level BPE writes printable bytes as themselves and the others, in order, as the characters from 256 on.
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(_OTHERS)}


def token_bytes(backend: tokenizers.Tokenizer, token_id: int) -> bytes:
    """The token's bytes in the midst of a text; an id that the tokenizer does not know has none."""
    text = _text_after_another(backend, token_id)
    if _REPLACEMENT not in text:
        return text.encode()
    token = backend.id_to_token(token_id) or ""
    if found := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(found[1], 16)])
    if all(letter in _BYTES for letter in token):
        return bytes(_BYTES[letter] for letter in token)
    return text.encode()


def _text_after_another(backend: tokenizers.Tokenizer, token_id: int) -> str:
    """A decoder may cut the space before the first token, so there is one before."""
    before = backend.encode("a", add_special_tokens=False).ids
    start: str = backend.decode(before, skip_special_tokens=False)
    text: str = backend.decode([*before, token_id], skip_special_tokens=False)
    return text[len(start) :]
