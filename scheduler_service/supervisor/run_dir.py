"""Where do the processes of one service meet? In a private directory, short enough for unix socket paths."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scheduler_service.supervisor.errors import ServiceError

_MAX_SOCKET_PATH_BYTES = 107
_LONGEST_NAME = "/gateway-99.sock"


@contextmanager
def private_run_dir(parent: Path | None) -> Iterator[Path]:
    """Make a directory of mode 0700 and remove it at the end.

    Args:
        parent: where to make it; default: the system's temporary directory, or /tmp if that one's path is too long.

    Raises:
        ServiceError: it cannot be made, or socket paths in it would be too long.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix="pagewire-", dir=_make(parent) if parent else _default_parent()))
    except OSError as error:
        raise ServiceError(f"cannot make a run directory in {error.filename}: {error.strerror}") from error
    try:
        if not _is_short(path):
            raise ServiceError(f"{path} is too long for unix sockets: give a shorter --run-dir")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _make(parent: Path) -> Path:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return parent.resolve()


def _default_parent() -> Path:
    parent = Path(tempfile.gettempdir())
    return parent if _is_short(parent / "pagewire-12345678") else Path("/tmp")  # noqa: S108 (mkdtemp makes it private)


def _is_short(path: Path) -> bool:
    return len(str(path).encode()) + len(_LONGEST_NAME) <= _MAX_SOCKET_PATH_BYTES
