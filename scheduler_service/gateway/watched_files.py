"""Which files have changed on disk? Asked again and again, because files that are swapped by links send no events."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_POLL_S = 1.0

_Mark = tuple[int, int, int] | None


class Reloadable(Protocol):
    """Something that was read from files."""

    def reload_if_changed(self) -> None:
        """Read them again if they have changed; never fails."""


class WatchedFiles:
    """Tells changes of some files by inode, size and time of modification; links are followed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._marks: list[_Mark] = []

    def have_changed(self) -> bool:
        """Whether any is another than at the last call; the first call says yes."""
        marks = [_mark(path) for path in self._paths]
        changed, self._marks = marks != self._marks, marks
        return changed


async def keep_fresh(reloadables: Sequence[Reloadable]) -> None:
    """Have all reloaded whenever they change, until cancelled."""
    while reloadables:
        await asyncio.sleep(_POLL_S)
        for reloadable in reloadables:
            reloadable.reload_if_changed()


def _mark(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
