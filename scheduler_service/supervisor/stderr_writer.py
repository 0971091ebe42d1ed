"""How does text reach standard error without ever holding up the service? By a thread, from a bounded queue."""

import io
import os
import queue
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MAX_QUEUED_WRITES = 4096
_FLUSH_S = 1.0
_READ_BYTES = 1 << 16
_STDERR = 2


class StderrWriter(io.TextIOBase):
    """A text stream over a file descriptor whose reader may be slow, stuck or gone.

    What does not fit in the queue is dropped; the next text that does fit is led by how many lines that were. Once the
    reader is gone, everything is dropped in silence, as there is nobody to tell. Safe to use from several threads.
    """

    encoding = "utf-8"

    def __init__(self, fd: int, max_queued_writes: int = _MAX_QUEUED_WRITES) -> None:
        self._fd = fd
        self._queue: queue.Queue[bytes | None] = queue.Queue(max_queued_writes)
        self._num_dropped = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="stderr-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue text; never waits."""
        with self._lock:
            self._put(text)
        return len(text)

    def isatty(self) -> bool:
        """Whether the text goes to a terminal."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """The descriptor written to."""
        return self._fd

    def finish(self, patience_s: float = _FLUSH_S) -> bool:
        """Let what is queued leave, but give up on a reader that does not read. True: all has left."""
        with self._lock:
            if self._num_dropped:
                self._put("")
        with suppress(queue.Full):
            self._queue.put(None, timeout=patience_s)
            self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _put(self, text: str) -> None:
        lost = f"supervisor | {self._num_dropped} lines dropped, standard error was not read\n"
        try:
            self._queue.put_nowait(((lost if self._num_dropped else "") + text).encode(errors="backslashreplace"))
            self._num_dropped = 0
        except queue.Full:
            self._num_dropped += text.count("\n")

    def _run(self) -> None:
        is_open = True
        while (data := self._queue.get()) is not None:
            is_open = is_open and _write_all(self._fd, data)


@contextmanager
def guarded_stderr(patience_s: float = _FLUSH_S) -> Iterator[StderrWriter]:
    """Give a writer to standard error, which takes what others in this process write there as well.

    Libraries write to the descriptor itself, and would wait for a reader that does not read. At the end what is left
    has `patience_s` to leave; otherwise it is lost, and so is what is written later.
    """
    try:
        real = os.dup(_STDERR)
    except OSError:
        real = os.open(os.devnull, os.O_WRONLY)
    writer = StderrWriter(real)
    source, sink = os.pipe()
    os.dup2(sink, _STDERR)
    os.close(sink)
    pump = threading.Thread(target=_pump, args=(source, writer), name="stderr-pump", daemon=True)
    pump.start()
    try:
        yield writer
    finally:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDERR)
        os.close(nowhere)
        pump.join(patience_s)
        if writer.finish(patience_s):
            os.dup2(real, _STDERR)


def _pump(source: int, writer: StderrWriter) -> None:
    while data := os.read(source, _READ_BYTES):
        writer.write(data.decode(errors="replace"))


def _write_all(fd: int, data: bytes) -> bool:
    """Write, waiting as long as it takes; False if nobody can read it any more."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return False
    return True
