"""GGUF files that hold a tokenizer and no tensors."""

from collections.abc import Sequence
from pathlib import Path

import gguf
from tokenizers import pre_tokenizers

CONTROL = int(gguf.TokenType.CONTROL)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
UNKNOWN = int(gguf.TokenType.UNKNOWN)
NORMAL = int(gguf.TokenType.NORMAL)
BYTE = int(gguf.TokenType.BYTE)

BYTE_LEVEL_MERGES = (("Ġ", "1"), ("1", "2"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"))


def write_byte_level_gguf(path: Path, *, pre: str, special: Sequence[tuple[str, int]] = (), **flags: bool) -> Path:
    """Byte-level BPE with a few merges, and special tokens of given types; the first is BOS and the second EOS."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in BYTE_LEVEL_MERGES]
    types = [NORMAL] * len(tokens) + [token_type for _, token_type in special]
    writer = _writer(path, "gpt2", tokens + [token for token, _ in special], types, flags)
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges([f"{left} {right}" for left, right in BYTE_LEVEL_MERGES])
    if len(special) >= 2:
        writer.add_bos_token_id(len(tokens))
        writer.add_eos_token_id(len(tokens) + 1)
    return _close(writer, path)


def write_sentencepiece_gguf(path: Path, pieces: Sequence[tuple[str, float]], **flags: bool) -> Path:
    """SentencePiece BPE: <unk>, <s>, </s>, the 256 bytes, then pieces with scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in pieces)]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    writer = _writer(path, "llama", tokens, types, flags)
    writer.add_token_scores([0.0] * 259 + [score for _, score in pieces])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return _close(writer, path)


def _writer(
    path: Path, algorithm: str, tokens: list[str], types: list[int], flags: dict[str, bool]
) -> "gguf.GGUFWriter":
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_tokenizer_model(algorithm)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    return writer


def _close(writer: "gguf.GGUFWriter", path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
