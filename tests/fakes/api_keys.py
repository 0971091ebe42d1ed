"""API keys and key files for tests."""

import hashlib
from pathlib import Path


def write_keys(path: Path, **keys: dict[str, object]) -> dict[str, str]:
    """Replace a key file by one with these names and further fields; the key of each name is "key-of-NAME"."""
    tables = []
    for name, fields in keys.items():
        digest = hashlib.sha256(f"key-of-{name}".encode()).hexdigest()
        lines = [f'name = "{name}"', f'hash = "sha256:{digest}"']
        lines += [f"{field} = {value!r}" for field, value in fields.items()]
        tables.append("\n".join(["[[keys]]", *lines]))
    scratch = path.with_suffix(".new")
    scratch.write_text("\n".join(tables) if tables else "keys = []")
    scratch.replace(path)
    return {name: f"key-of-{name}" for name in keys}


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata of calls with the key of this name."""
    return (("authorization", f"Bearer key-of-{name}"),)
