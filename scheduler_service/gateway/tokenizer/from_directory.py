"""Which tokenizer and chat template does a model directory hold?

Files, all but the first optional: tokenizer.json, tokenizer_config.json (special tokens, a template),
special_tokens_map.json (special tokens that the one before lacks), chat_template.json and chat_template.jinja (a
template that overrides those before).
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from scheduler_service.gateway.exceptions import ModelFileError
from scheduler_service.gateway.tokenizer.special_tokens import adds_token, set_added_tokens
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_directory(directory: Path) -> tuple[Tokenizer, str | None]:
    """Load the tokenizer, and the chat template's source if there is one.

    Raises:
        ModelFileError: tokenizer.json is missing, or a file is damaged.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"the model directory {directory} has no tokenizer.json: add the model's own")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises nothing more precise.
        raise ModelFileError(f"{path} is not a tokenizer ({error}): download it again") from error
    config = read_json(directory / "tokenizer_config.json")
    special_tokens = _special_tokens(config, read_json(directory / "special_tokens_map.json"))
    _apply_add_bos(backend, config, special_tokens)
    return Tokenizer(backend, special_tokens), _chat_template(directory, config)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that does not exist is an empty one.

    Raises:
        ModelFileError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read {path} ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} does not hold a JSON object: download it again")
    return content


def _special_tokens(config: dict[str, Any], older: dict[str, Any]) -> dict[str, str]:
    texts = {role: _token_text(config.get(role) or older.get(role)) for role in _ROLES}
    return {role: text for role, text in texts.items() if text is not None}


def _token_text(token: object) -> str | None:
    """A token is written as its text, or as an object with the text in `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _apply_add_bos(backend: tokenizers.Tokenizer, config: dict[str, Any], special_tokens: dict[str, str]) -> None:
    """Let an explicit add_bos_token overrule what tokenizer.json does."""
    bos, wanted = special_tokens.get("bos_token"), config.get("add_bos_token")
    bos_id = backend.token_to_id(bos) if bos is not None else None
    if bos is None or bos_id is None or not isinstance(wanted, bool) or wanted == adds_token(backend, bos_id):
        return
    eos = special_tokens.get("eos_token")
    adds_eos = eos is not None and config.get("add_eos_token") is True
    set_added_tokens(backend, bos=bos if wanted else None, eos=eos if adds_eos else None)


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    jinja_path = directory / "chat_template.jinja"
    if jinja_path.exists():
        return jinja_path.read_text(encoding="utf-8")
    template = read_json(directory / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        # Several named templates: the one that is called default.
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None
