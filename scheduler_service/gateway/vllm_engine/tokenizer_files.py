"""Which files does a remote reader of the tokenizer need? Those of a model directory, made from what is served.

A model in one file (GGUF) has none of them, so they are written from the tokenizer itself.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

from smg_grpc_proto.generated import common_pb2

from scheduler_service.gateway.served_model import ServedModel

_CHUNK_BYTES = 1 << 20
# Of all entries, so that the same tokenizer is the same archive.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def tokenizer_archive(model: ServedModel) -> bytes:
    """A zip archive with tokenizer.json, tokenizer_config.json and config.json. Takes long for a large vocabulary."""
    files = {
        "tokenizer.json": model.tokenizer.to_json(),
        "tokenizer_config.json": json.dumps(_tokenizer_config(model), ensure_ascii=False),
        "config.json": json.dumps(_config(model), ensure_ascii=False),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in files.items():
            writer.writestr(zipfile.ZipInfo(name, _TIMESTAMP), content, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def to_chunks(archive: bytes) -> Iterator[common_pb2.GetTokenizerChunk]:
    """The archive in messages; the last one has its SHA-256."""
    for start in range(0, len(archive), _CHUNK_BYTES):
        chunk = common_pb2.GetTokenizerChunk(data=archive[start : start + _CHUNK_BYTES])
        if start + _CHUNK_BYTES >= len(archive):
            chunk.sha256 = hashlib.sha256(archive).hexdigest()
        yield chunk


def _tokenizer_config(model: ServedModel) -> dict[str, Any]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **model.tokenizer_config, **model.tokenizer.special_tokens}
    if model.chat_template is not None:
        config["chat_template"] = model.chat_template.source
    return config


def _config(model: ServedModel) -> dict[str, Any]:
    if model.config:
        return dict(model.config)
    return {
        "model_type": model.architecture,
        "max_position_embeddings": model.max_model_len,
        "vocab_size": model.tokenizer.vocab_size,
    }
