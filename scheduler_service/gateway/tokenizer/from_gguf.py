"""How is a tokenizer built from GGUF metadata?

`tokenizer.ggml.model` names the algorithm: "gpt2" is byte-level BPE with listed merges, whose way to split text into
words is named by `tokenizer.ggml.pre`; "llama" is SentencePiece BPE, whose merges follow from the tokens' scores.
"""

from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from scheduler_service.gateway.exceptions import ModelFileError
from scheduler_service.gateway.tokenizer.gguf_metadata import Metadata, Value
from scheduler_service.gateway.tokenizer.pre_tokenizer import PRE_TOKENIZERS
from scheduler_service.gateway.tokenizer.sentencepiece import merges_from_scores
from scheduler_service.gateway.tokenizer.special_tokens import set_added_tokens
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

# Values of tokenizer.ggml.token_type.
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "▁"


def tokenizer_from_gguf(metadata: Metadata, path: Path) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Args:
        metadata: the file's key-value pairs.
        path: the file, named in errors.
    Raises:
        ModelFileError: the metadata is incomplete, or of a kind that is not supported.
    """
    vocabulary = _Vocabulary(metadata, path)
    algorithm = vocabulary.text("model")
    if algorithm == "gpt2":
        backend, adds_bos = _byte_level_bpe(vocabulary)
    elif algorithm == "llama":
        backend, adds_bos = _sentencepiece_bpe(vocabulary), True
    else:
        raise ModelFileError(
            f"{path} has a tokenizer of model {algorithm!r}; supported are 'gpt2' and 'llama': "
            "use a directory with tokenizer.json"
        )
    _mark_added_tokens(backend, vocabulary)
    special_tokens = vocabulary.special_tokens()
    set_added_tokens(
        backend,
        bos=special_tokens.get("bos_token") if vocabulary.flag("add_bos_token", adds_bos) else None,
        eos=special_tokens.get("eos_token") if vocabulary.flag("add_eos_token", False) else None,
    )
    return Tokenizer(backend, special_tokens)


def _byte_level_bpe(vocabulary: "_Vocabulary") -> tuple[tokenizers.Tokenizer, bool]:
    pre_name = vocabulary.text("pre", "default")
    pre = PRE_TOKENIZERS.get(pre_name)
    if pre is None:
        raise ModelFileError(
            f"{vocabulary.path} splits text by {pre_name!r} (tokenizer.ggml.pre), which is not supported: "
            "use a directory with tokenizer.json"
        )
    merges = [_split_merge(merge) for merge in vocabulary.texts("merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre.prefers_whole_words)
    )
    backend.pre_tokenizer = pre.build()
    backend.decoder = decoders.ByteLevel()
    return backend, pre.adds_bos


def _split_merge(merge: str) -> tuple[str, str]:
    space = merge.index(" ", 1)
    return merge[:space], merge[space + 1 :]


def _sentencepiece_bpe(vocabulary: "_Vocabulary") -> tokenizers.Tokenizer:
    tokens = zip(vocabulary.tokens, vocabulary.numbers("scores"), vocabulary.types(), strict=False)
    scores = [(token, score) for token, score, token_type in tokens if token_type == _NORMAL]
    merges = merges_from_scores(vocabulary.ids, scores)
    unknown = vocabulary.special_tokens().get("unk_token")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _mark_added_tokens(backend: tokenizers.Tokenizer, vocabulary: "_Vocabulary") -> None:
    """Make control and user-defined tokens match as a whole wherever their text stands."""
    marked = [
        AddedToken(token, normalized=False, special=token_type != _USER_DEFINED)
        for token, token_type in zip(vocabulary.tokens, vocabulary.types(), strict=False)
        if token_type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(marked)


class _Vocabulary:
    """The `tokenizer.ggml.*` part of the metadata, checked as it is read."""

    def __init__(self, metadata: Mapping[str, Value], path: Path) -> None:
        self._metadata = metadata
        self.path = path
        self.tokens = self.texts("tokens")
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}

    def text(self, key: str, default: str | None = None) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, str):
            raise self._missing(key)
        return value

    def texts(self, key: str) -> list[str]:
        return [value for value in self._list(key) if isinstance(value, str)]

    def numbers(self, key: str) -> list[float]:
        return [value for value in self._list(key) if isinstance(value, int | float)]

    def types(self) -> list[float]:
        """Each token's type; all are normal where the file does not say."""
        known = "tokenizer.ggml.token_type" in self._metadata
        return self.numbers("token_type") if known else [_NORMAL] * len(self.tokens)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def special_tokens(self) -> dict[str, str]:
        """Role to token text, of the roles that the file fills."""
        roles = {role: self._metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
        return {
            role: self.tokens[token_id]
            for role, token_id in roles.items()
            if isinstance(token_id, int) and token_id < len(self.tokens)
        }

    def _list(self, key: str) -> list[Value]:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise self._missing(key)
        return value

    def _missing(self, key: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path} lacks the metadata tokenizer.ggml.{key}: use a file that contains its tokenizer"
        )
