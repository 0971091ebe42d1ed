"""What does a person see while the service runs? Prefixed log lines of all processes, and progress bars at the start.

On a terminal names are coloured and progress is drawn; elsewhere both become plain lines. Or all is JSON, for machines:
a process's own objects as they are, and every other line, of whomever, as the message of one.
"""

import logging
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pagewire.ipc.logs import JsonFormatter, LogFormat, entry_of, from_line, to_line

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
_NAME_WIDTH = 11
_PLAIN_INTERVAL_S = 5.0


class Output:
    """Writes to standard error. Safe to use from several threads.

    Args:
        show_progress: show how far the start is.
        on_stage: called when another part of the start begins, shown or not.
        log_format: JSON draws no progress.
    """

    def __init__(
        self,
        console: Console,
        show_progress: bool = True,
        on_stage: Callable[[str], None] | None = None,
        log_format: LogFormat = LogFormat.TEXT,
    ) -> None:
        self._console = console
        self._show_progress = show_progress
        self._on_stage = on_stage
        self.log_format = log_format
        self._stage = ""
        self._colours: dict[str, str] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._next_plain_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def line(self, name: str, text: str) -> None:
        """Write one log line of one process."""
        if self.log_format is LogFormat.JSON:
            self._write_json(name, text)
            return
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        line = Text.assemble((f"{name:<{_NAME_WIDTH}}| ", colour), text)
        self._console.print(line, soft_wrap=True, highlight=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a slow part is; total 0 means not known."""
        if not stage:
            return
        with self._lock:
            self._note_stage(stage)
            if not self._show_progress:
                return
            if self._console.is_terminal and self.log_format is LogFormat.TEXT:
                self._draw(stage, done, total)
            else:
                self._write_plain(stage, done, total)

    def end_progress(self, is_done: bool) -> None:
        """Draw no more; what was last shown is done, or stays as far as it got."""
        with self._lock:
            if self._bars is not None:
                if is_done:
                    self._finish_tasks(self._bars)
                self._bars.stop()
                self._bars = None
                self._tasks.clear()

    def _note_stage(self, stage: str) -> None:
        if stage != self._stage and self._on_stage is not None:
            self._on_stage(stage)
        self._stage = stage

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[percent]:>4}"),
            )
            self._bars = Progress(*columns, TimeElapsedColumn(), console=self._console)
            self._bars.start()
        if stage not in self._tasks:
            self._finish_tasks(self._bars)
            self._tasks[stage] = self._bars.add_task(stage, total=None, percent="")
        percent = f"{100 * done // total}%" if total else ""
        self._bars.update(self._tasks[stage], completed=done, total=total or None, percent=percent)

    def _finish_tasks(self, bars: Progress) -> None:
        """A new stage has begun, so the earlier ones are done."""
        for task in (task for task in bars.tasks if task.stop_time is None):
            bars.update(task.id, completed=task.total or 1, total=task.total or 1, percent="done")
            bars.stop_task(task.id)

    def _write_plain(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next_plain_s.get(stage, 0.0):
            self._next_plain_s[stage] = now + _PLAIN_INTERVAL_S
            text = f"{stage}: {100 * done // total} %" if total else f"{stage} ..."
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line of the supervisor's own that is no log record."""
        if self.log_format is LogFormat.JSON:
            self._write_json("supervisor", text)
        else:
            self._console.print(Text(text), soft_wrap=True, highlight=False)

    def _write_json(self, name: str, line: str) -> None:
        if from_line(line) is None:
            line = to_line(entry_of(name, line, "info", __name__, time.time()))
        self._console.file.write(line + "\n")


class OutputHandler(logging.Handler):
    """Sends the supervisor's own log records to the output."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        is_json = output.log_format is LogFormat.JSON
        text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        self.setFormatter(JsonFormatter("supervisor") if is_json else text)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self._output.line("supervisor", self.format(record))
