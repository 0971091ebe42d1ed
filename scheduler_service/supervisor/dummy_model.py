"""Which models are served without a checkpoint, to measure speed? Those of `SHAPES`, with random weights.

A directory is written with a config.json of the shape and a tokenizer.json that has a text for every token id; the
workers draw the weights themselves.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from scheduler_service.supervisor.errors import ServiceError

PREFIX = "dummy:"

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}

# Sizes as in the published config.json of each model; "tiny" is for tests.
SHAPES: Mapping[str, Mapping[str, object]] = {
    "qwen3-0.6b": {
        **_QWEN3,
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
    },
    "qwen3-8b": {
        **_QWEN3,
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "eos_token_id": 151645,
    },
    "tiny": {
        **_QWEN3,
        "vocab_size": 10240,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    },
}


def write_dummy(name: str, cache_dir: Path) -> Path:
    """Write the directory of a model without weights; returns it.

    Raises:
        ServiceError: there is no such shape.
    """
    shape = SHAPES.get(name)
    if shape is None:
        raise ServiceError(f"there is no dummy model {name!r}: there are {', '.join(SHAPES)}")
    folder = cache_dir / "dummy" / name
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = shape["vocab_size"]
    assert isinstance(vocab_size, int)
    _write(folder / "tokenizer.json", _tokenizer(vocab_size))
    _write(folder / "config.json", shape)
    return folder


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """Byte-level BPE without merges: the first 256 ids are single bytes, any other one is a word with its number."""
    vocab = {letter: token_id for token_id, letter in enumerate(_byte_letters())}
    vocab |= {f"Ġ{token_id}": token_id for token_id in range(len(vocab), vocab_size)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself, or the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Write at once or not at all: another start may read or write the same file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)
