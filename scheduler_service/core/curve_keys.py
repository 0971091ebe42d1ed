"""pagewire keys curve: makes the keys with which processes on several machines know each other."""

import argparse
import os
import sys
from pathlib import Path

import zmq

from pagewire.ipc.curve import GATEWAY, SCHEDULER, WORKER

_ROLES = (SCHEDULER, GATEWAY, WORKER)


def main(arguments: list[str] | None = None) -> int:
    """Make those that are not there yet. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="pagewire keys curve", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory for the keys, made if it is not there")
    parser.add_argument(
        "--role", action="append", choices=_ROLES, help="whose keys to make; repeatable; default: all three"
    )
    flags = parser.parse_args(arguments)
    try:
        flags.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for role in flags.role or _ROLES:
            print(_make_pair(flags.dir, role))
    except OSError as error:
        print(f"pagewire: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _make_pair(folder: Path, role: str) -> str:
    """Write a pair, unless there is one. Returns what to tell."""
    public, secret = folder / f"{role}.public", folder / f"{role}.secret"
    if public.exists() or secret.exists():
        return f"{role}: kept, {public} is there already"
    public_key, secret_key = zmq.curve_keypair()
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret_key + b"\n")
    public.write_bytes(public_key + b"\n")
    return f"{role}: made {public} and {secret}, which only its own process may read"


if __name__ == "__main__":
    sys.exit(main())
