"""pagewire keys new: makes an API key, prints it once, and keeps its hash alone."""

import argparse
import hashlib
import json
import os
import secrets
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from scheduler_service.gateway.auth.caller import Role
from scheduler_service.gateway.auth.key_file import HASH_PREFIX, KeyFileError, read_key_file

_KEY_PREFIX = "pw-"
_KEY_BYTES = 32
_FIELDS = (
    "tenant",
    "cache_salt",
    "max_concurrent_requests",
    "requests_per_minute",
    "tokens_per_minute",
    "max_priority",
)


def main(arguments: list[str] | None = None) -> int:
    """Make a key. The key is all that goes to standard output. Returns the exit status."""
    flags = _parser().parse_args(arguments)
    key = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    table = _table(flags, key)
    try:
        if flags.file is None:
            print(f"Put this into the key file:\n\n{table}", file=sys.stderr)
        else:
            _append(flags.file, table)
    except KeyFileError as error:
        print(f"pagewire: {error}", file=sys.stderr)
        return 1
    print("The key, which is not kept and cannot be shown again:", file=sys.stderr)
    print(key)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pagewire keys new", description=__doc__)
    add = parser.add_argument
    add("--name", required=True, help="who has the key: shown in logs and error messages")
    add("--file", type=Path, help="key file to add it to, made if it is not there; default: show what to add")
    add("--role", action="append", choices=[str(role) for role in Role], help="repeatable; default: generate")
    add("--tenant", help="whose limits and cached prefixes it shares; default: its name")
    add("--cache-salt", help="prefixes are shared with keys of the same salt alone; default: the tenant")
    add("--max-concurrent-requests", type=int, metavar="N")
    add("--requests-per-minute", type=int, metavar="N")
    add("--tokens-per-minute", type=int, metavar="N", help="of prompts and outputs together")
    add("--max-priority", type=int, metavar="N", help="highest priority that its requests may ask for")
    return parser


def _table(flags: argparse.Namespace, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    values = {"name": flags.name, "hash": HASH_PREFIX + digest, "roles": flags.role}
    values |= {name: getattr(flags, name) for name in _FIELDS}
    # Strings, lists of strings and numbers are written alike in JSON and in TOML.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["[[keys]]", *lines, ""])


def _append(path: Path, table: str) -> None:
    """Replace the file by one with the new key, at once, so that no reader finds half of it.

    Raises:
        KeyFileError: the file is wrong, would be, or cannot be written.
    """
    path = path.resolve()
    old = ""
    if path.exists():
        read_key_file(path)
        old = path.read_text().rstrip() + "\n\n"
    scratch = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(descriptor, "w") as file:
            file.write(old + table)
        if old:
            scratch.chmod(path.stat().st_mode & 0o777)
        read_key_file(scratch)
        scratch.replace(path)
    except KeyFileError as error:
        raise KeyFileError(f"the key is not added: {str(error).replace(name, str(path))}") from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if scratch is not None:
            with suppress(FileNotFoundError):
                scratch.unlink()


if __name__ == "__main__":
    sys.exit(main())
