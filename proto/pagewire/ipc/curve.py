"""When must a ZeroMQ socket be encrypted, and with which keys? CURVE, for every address that leaves this machine.

One directory holds the keys of a deployment, in files of 40 characters (Z85). Each process needs its part of it:

    scheduler   scheduler.secret, scheduler.public, and gateway*.public, worker*.public: who may connect
    gateway     gateway.secret, gateway.public, scheduler.public
    worker      worker.secret, worker.public, scheduler.public

Sockets are told by setting attributes that ZeroMQ's have, so that nothing is imported here.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEDULER, GATEWAY, WORKER = "scheduler", "gateway", "worker"
_KEY_CHARS = 40
_LOCAL_SCHEMES = ("ipc://", "inproc://")
_TCP = "tcp://"


class CurveError(ValueError):
    """Keys are needed and missing, or cannot be used. The message says which and what to do, and never holds one."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85 text of a public key and its secret one, which is not printed."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"


def leaves_machine(address: str) -> bool:
    """Whether a ZeroMQ address can be reached from other machines; a name other than localhost may be."""
    if not address.startswith(_TCP):
        return "://" in address and not address.startswith(_LOCAL_SCHEMES)
    # The source address that may stand before the peer's.
    host = address.removeprefix(_TCP).rpartition(";")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def check_keys(address: str, keys: Path | None) -> None:
    """Are there keys, if the address needs them?

    Raises:
        CurveError: there are none.
    """
    if _needs_keys(address, keys):
        _folder(keys, address)


def secure_server(socket: Any, address: str, keys: Path | None, domain: str) -> None:
    """Have a socket that is to be bound ask its peers for keys, if its address needs that, or there are keys for it.

    Whose keys are taken is up to the ZAP handler of the socket's context, which knows it by `domain`.

    Raises:
        CurveError: there is no key.
    """
    if not _needs_keys(address, keys):
        return
    pair = read_pair(_folder(keys, address), SCHEDULER)
    socket.curve_secretkey = pair.secret
    socket.curve_publickey = pair.public
    socket.curve_server = True
    socket.zap_domain = domain.encode()


def secure_client(socket: Any, address: str, keys: Path | None, role: str) -> None:
    """Have a socket that is to be connected show the key of its role, and ask for the scheduler's.

    Raises:
        CurveError: there is none.
    """
    if not _needs_keys(address, keys):
        return
    folder = _folder(keys, address)
    pair = read_pair(folder, role)
    socket.curve_secretkey = pair.secret
    socket.curve_publickey = pair.public
    socket.curve_serverkey = _read(folder / f"{SCHEDULER}.public")


def allowed_keys(folder: Path, role: str) -> set[bytes]:
    """Public keys of those who may connect as this role, as the files say now; those that are no keys are left out."""
    return {text for path in folder.glob(f"{role}*.public") if len(text := _content(path)) == _KEY_CHARS}


def read_pair(folder: Path, role: str) -> KeyPair:
    """The keys of a role.

    Raises:
        CurveError: they are not there.
    """
    return KeyPair(_read(folder / f"{role}.public"), _read(folder / f"{role}.secret"))


def _needs_keys(address: str, keys: Path | None) -> bool:
    return leaves_machine(address) or (keys is not None and address.startswith(_TCP))


def _folder(keys: Path | None, address: str) -> Path:
    if keys is None:
        raise CurveError(
            f"{address} can be reached from other machines and would be neither encrypted nor closed to strangers: "
            "give --curve-keys DIR, made by 'pagewire keys curve', or use ipc:// or 127.0.0.1"
        )
    return keys


def _read(path: Path) -> bytes:
    text = _content(path)
    if len(text) != _KEY_CHARS:
        raise CurveError(f"there is no CURVE key in {path}: make one with 'pagewire keys curve', or copy it there")
    return text


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError:
        return b""
