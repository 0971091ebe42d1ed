"""Where do the processes of one service meet? In a private directory, short enough for unix socket paths.

The living supervisor holds a lock in it. A directory whose lock is free was left by one that was killed; the next
start removes it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scheduler_service.supervisor.errors import ServiceError

_PREFIX = "pagewire-"
_LOCK_NAME = "lock"
_MAX_SOCKET_PATH_BYTES = 107
_LONGEST_NAME = "/gateway-99.sock"


@contextmanager
def private_run_dir(parent: Path | None) -> Iterator[Path]:
    """Make a directory of mode 0700 and remove it at the end; also removes those that killed supervisors left there.

    Args:
        parent: where to make it; default: the system's temporary directory, or /tmp if that one's path is too long.

    Raises:
        ServiceError: it cannot be made, or socket paths in it would be too long.
    """
    parent = _default_parent() if parent is None else parent.absolute()
    if not _is_short(_example_in(parent)):
        raise ServiceError(f"{parent} is too long for unix sockets: give a shorter --run-dir")
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise ServiceError(f"cannot make a run directory in {error.filename}: {error.strerror}") from error
    try:
        lock = _lock(path)
        try:
            yield path
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> int:
    """Give a descriptor that holds the directory's lock. It gets its name once it is held, so that nobody takes it."""
    try:
        lock = os.open(path / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(path / "lock.new", path / _LOCK_NAME)
    except OSError as error:
        raise ServiceError(f"cannot lock the run directory {path}: {error.strerror}; give another --run-dir") from error
    return lock


def _sweep(parent: Path) -> None:
    """Remove this user's run directories whose supervisor is gone."""
    for path in parent.glob(_PREFIX + "*"):
        # Another start may be removing it as well.
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not _is_in_use(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_in_use(path: Path) -> bool:
    """Whether its lock is held. Raises OSError: there is none, so it is no run directory, or one in the making."""
    lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _default_parent() -> Path:
    parent = Path(tempfile.gettempdir())
    return parent if _is_short(_example_in(parent)) else Path("/tmp")  # noqa: S108 (mkdtemp makes it private)


def _example_in(parent: Path) -> Path:
    return parent / (_PREFIX + "12345678")


def _is_short(path: Path) -> bool:
    return len(str(path).encode(errors="surrogateescape")) + len(_LONGEST_NAME) <= _MAX_SOCKET_PATH_BYTES
