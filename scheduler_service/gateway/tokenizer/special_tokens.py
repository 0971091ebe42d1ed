"""Which special tokens does plain text get? Makes a tokenizer add BOS and EOS, or not, as the model's files say."""

import tokenizers
from tokenizers import processors


def adds_token(backend: tokenizers.Tokenizer, token_id: int) -> bool:
    """Tell whether encoding plain text adds this token."""
    plain = backend.encode("a", add_special_tokens=False).ids
    return backend.encode("a").ids.count(token_id) > plain.count(token_id)


def set_added_tokens(backend: tokenizers.Tokenizer, *, bos: str | None, eos: str | None) -> None:
    """Make the tokenizer put `bos` before and `eos` after plain text; None adds nothing there."""
    parts = [part for part in (bos, "$A", eos) if part is not None]
    ids = [(token, backend.token_to_id(token)) for token in (bos, eos) if token is not None]
    backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
