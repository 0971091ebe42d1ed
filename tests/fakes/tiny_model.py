"""A model directory with a tokenizer of a few hundred tokens, and no weights: enough for a gateway."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

BOS, EOS, TURN, END_OF_TURN = "<|bos|>", "<|eos|>", "<|turn|>", "<|end|>"
_MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("Ġ", "hello")]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE: ids 0 to 255 are single bytes, then a few merges, then four special tokens."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in _MERGES]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: token_id for token_id, token in enumerate(tokens)}, merges=_MERGES)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, TURN, END_OF_TURN)])
    return backend


def byte_level_ids(data: bytes) -> list[int]:
    """One id of the byte-level tokenizer per byte, whether the bytes are UTF-8 or not."""
    # Byte-level BPE writes printable bytes as themselves and the others, in order, as the characters from 256 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in data]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index(letter) for letter in letters]


def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer with byte fallback: id 0 is <unk>, 1 to 256 are bytes, then a few pieces with and without a space."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "é", "▁中", "�"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: piece_id for piece_id, piece in enumerate(pieces)},
            merges=[("▁", "a"), ("▁", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


def write_tiny_model(folder: Path, **config: object) -> Path:
    """Write the byte-level tokenizer as a model directory; `config` changes tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer_config = {"bos_token": BOS, "eos_token": {"content": EOS}, "chat_template": CHAT_TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "max_position_embeddings": 512}))
    return folder
