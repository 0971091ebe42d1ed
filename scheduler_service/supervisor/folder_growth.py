"""How far is a download that reports nothing itself? Watches the bytes that appear in its folder."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_INTERVAL_S = 0.2


@contextmanager
def report_growth(folder: Path, total_bytes: int, on_progress: Callable[[int, int], None]) -> Iterator[None]:
    """While the body runs, report the size of everything in the folder beside the size it will have."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_INTERVAL_S):
            on_progress(min(_size(folder), total_bytes), total_bytes)

    watcher = threading.Thread(target=watch, name="folder-growth", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total
