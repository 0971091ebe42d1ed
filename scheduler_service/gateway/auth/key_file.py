"""Which API keys does a key file hold? TOML, one [[keys]] table for each key; docs/security.md lists the fields."""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scheduler_service.gateway.auth.caller import Caller, CallerLimits, Role

HASH_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,62}")
_MAX_FILE_BYTES = 16 << 20
_MAX_PRIORITY = 1000
_COUNTS = ("max_concurrent_requests", "requests_per_minute", "tokens_per_minute")
_LIMITS = tuple(limit.name for limit in fields(CallerLimits))
_FIELDS = {"name", "hash", "tenant", "roles", "cache_salt", *_LIMITS}


class KeyFileError(ValueError):
    """The file cannot be used; the message says which, why, and what to do. It never holds a key or a hash."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key: the SHA-256 digest by which it is known, and who has it."""

    name: str
    digest: bytes
    caller: Caller


def read_key_file(path: Path) -> list[KeyEntry]:
    """Read all keys.

    Raises:
        KeyFileError: the file is missing, empty or wrong. To have no keys at all, write `keys = []`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}; check --api-keys") from error
    if not data.strip():
        raise KeyFileError(f"the key file {path} is empty: add a key with 'pagewire keys new', or write 'keys = []'")
    if len(data) > _MAX_FILE_BYTES:
        raise KeyFileError(f"the key file {path} is larger than {_MAX_FILE_BYTES} bytes: is it a key file?")
    try:
        tables = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        # What the parser says may quote the line, and so a hash.
        raise KeyFileError(f"the key file {path} is no TOML: check it with a TOML parser") from None
    return _entries(tables, path)


def _entries(tables: dict[str, Any], path: Path) -> list[KeyEntry]:
    keys = tables.get("keys")
    if set(tables) != {"keys"} or not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeyFileError(f"the key file {path} must have [[keys]] tables and nothing else")
    entries = [_entry(key, f"key {number} of {path}") for number, key in enumerate(keys, start=1)]
    for what, values in (("name", [entry.name for entry in entries]), ("hash", [entry.digest for entry in entries])):
        if len(set(values)) < len(values):
            raise KeyFileError(f"the key file {path} has two keys with the same {what}: remove one")
    return entries


def _entry(table: dict[str, Any], where: str) -> KeyEntry:
    unknown = sorted(set(table) - _FIELDS)
    if unknown:
        raise KeyFileError(
            f"{where} has a field {unknown[0]!r}, which is not known; known: {', '.join(sorted(_FIELDS))}"
        )
    name = _text(table, "name", where)
    tenant = _text(table, "tenant", where, default=name)
    for what, value in (("name", name), ("tenant", tenant)):
        if not _NAME.fullmatch(value):
            raise KeyFileError(f"{where} has a {what} that is not 1 to 63 letters, digits and ._@/-")
    match = _HASH.fullmatch(_text(table, "hash", where))
    if match is None:
        raise KeyFileError(f"{where} has a hash that is not {HASH_PREFIX} and 64 hexadecimal digits")
    salt = _text(table, "cache_salt", where, default=tenant)
    if not salt or "\0" in salt:
        raise KeyFileError(f"{where} has a cache_salt that is empty or has a zero character: leave it out")
    return KeyEntry(
        name, bytes.fromhex(match[1]), Caller(tenant, _roles(table, where), _limits(table, where), cache_salt=salt)
    )


def _text(table: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise KeyFileError(f"{where} needs a {key}, in quotes")
    return value


def _roles(table: dict[str, Any], where: str) -> frozenset[Role]:
    names = table.get("roles", [Role.GENERATE])
    known = {str(role): role for role in Role}
    if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
        raise KeyFileError(f"{where} has roles that are not a list of {', '.join(known)}")
    return frozenset(known[name] for name in names)


def _limits(table: dict[str, Any], where: str) -> CallerLimits:
    for key in _LIMITS:
        value = table.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise KeyFileError(f"{where} has a {key} that is no whole number")
        if key in _COUNTS and value < 1:
            raise KeyFileError(f"{where} has {key} = {value}: it must be 1 or more; to stop a key, remove it")
        if key not in _COUNTS and abs(value) > _MAX_PRIORITY:
            raise KeyFileError(f"{where} has {key} = {value}: it must be -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
    return CallerLimits(**{key: table.get(key) for key in _LIMITS})
