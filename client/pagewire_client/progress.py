"""How far is a batch? A bar with requests done and output tokens per second."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH_S = 0.1


class BatchProgress:
    """Counts from one thread while a thread of its own draws, so that counting stays cheap."""

    def __init__(self, console: Console, num_requests: int, show: bool) -> None:
        self.num_tokens = 0
        self.num_done = 0
        self._stop = threading.Event()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} tok/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            disable=not show,
        )
        self._task = self._bar.add_task("requests", total=num_requests, rate=0.0)
        self._thread = threading.Thread(target=self._draw, name="pagewire-progress", daemon=True)
        self._show = show

    def add_tokens(self, count: int) -> None:
        """Tokens have come."""
        self.num_tokens += count

    def add_done(self) -> None:
        """A request has ended."""
        self.num_done += 1

    def __enter__(self) -> Self:
        if self._show:
            self._bar.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._show:
            self._stop.set()
            self._thread.join()
            self._bar.stop()

    def _draw(self) -> None:
        start_s = time.monotonic()
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_REFRESH_S)
            rate = self.num_tokens / (time.monotonic() - start_s)
            self._bar.update(self._task, completed=self.num_done, rate=rate)
            self._bar.refresh()
