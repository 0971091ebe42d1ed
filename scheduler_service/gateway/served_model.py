"""What does the gateway know of the model? Its tokenizer, chat template and size, read from the model's own files."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler_service.gateway.chat_template import ChatTemplate, ChatTemplateError
from scheduler_service.gateway.exceptions import ModelFileError, UnknownModelError
from scheduler_service.gateway.tokenizer.from_directory import read_json, tokenizer_from_directory
from scheduler_service.gateway.tokenizer.from_gguf import tokenizer_from_gguf
from scheduler_service.gateway.tokenizer.gguf_metadata import read_gguf_metadata
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that this gateway answers for. `max_model_len` is what the files say; 0 where they do not.

    `config` and `tokenizer_config` are the content of the files with these names; empty for a model without them.
    """

    name: str
    architecture: str
    max_model_len: int
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)

    def check_name(self, name: str) -> None:
        """Is this the model that a request names? A request that names none means this one.

        Raises:
            UnknownModelError: it is another.
        """
        if name and name != self.name:
            raise UnknownModelError(name, self.name)


def read_served_model(path: Path, name: str) -> ServedModel:
    """Read a GGUF file, or a directory with tokenizer.json.

    Raises:
        ModelFileError: a file is missing or damaged.
    """
    if path.is_dir():
        return _from_directory(path, name)
    if path.exists():
        return _from_gguf(path, name)
    raise ModelFileError(f"the model {path} does not exist: give a GGUF file or a directory with tokenizer.json")


def _from_gguf(path: Path, name: str) -> ServedModel:
    metadata = read_gguf_metadata(path)
    tokenizer = tokenizer_from_gguf(metadata, path)
    architecture = str(metadata.get("general.architecture", ""))
    context_length = metadata.get(f"{architecture}.context_length", 0)
    template = metadata.get("tokenizer.chat_template")
    return ServedModel(
        name=name,
        architecture=architecture,
        max_model_len=context_length if isinstance(context_length, int) else 0,
        tokenizer=tokenizer,
        chat_template=_compile(template if isinstance(template, str) else None, tokenizer),
    )


def _from_directory(path: Path, name: str) -> ServedModel:
    config = read_json(path / "config.json")
    tokenizer, template = tokenizer_from_directory(path)
    # Models with several parts keep their language model's sizes one level down.
    text_config: dict[str, Any] = config.get("text_config") or config
    return ServedModel(
        name=name,
        architecture=str(config.get("model_type", "")),
        max_model_len=int(text_config.get("max_position_embeddings") or 0),
        tokenizer=tokenizer,
        chat_template=_compile(template, tokenizer),
        config=config,
        tokenizer_config=read_json(path / "tokenizer_config.json"),
    )


def _compile(source: str | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    if source is None:
        return None
    try:
        return ChatTemplate(source, tokenizer.special_tokens)
    except ChatTemplateError as error:
        logger.warning("the model's chat template cannot be used, chats are refused error=%s", error)
        return None
