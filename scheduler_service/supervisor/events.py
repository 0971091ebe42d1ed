"""How does a program that started the supervisor follow it? One JSON object per line on a pipe it handed over.

    {"event": "stage", "stage": TEXT}       one for each part of the start, when it begins
    {"event": "ready", "model": NAME, "addresses": [...], "http_urls": [...]}
    {"event": "failed", "detail": TEXT}

The pipe also ties the two together: once its reader is gone, `reader_gone` fires and the service stops.
"""

import asyncio
import json
import os
import select
from collections.abc import Callable
from contextlib import suppress


class EventPipe:
    """The write end of the pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.was_ready = False
        os.set_inheritable(fd, False)

    def stage(self, stage: str) -> None:
        """Another part of the start has begun."""
        self._write({"event": "stage", "stage": stage})

    def ready(self, model: str, addresses: list[str], http_urls: list[str]) -> None:
        """Requests can be sent to these addresses, by gRPC and by HTTP."""
        self.was_ready = True
        self._write({"event": "ready", "model": model, "addresses": addresses, "http_urls": http_urls})

    def failed(self, detail: str) -> None:
        """The service ends for this reason."""
        self._write({"event": "failed", "detail": detail})

    def watch_reader(self, loop: asyncio.AbstractEventLoop, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` once nobody can read the pipe any more.

        A pipe's write end has no event of its own for that; an epoll set that waits for errors alone has.
        """
        watch = select.epoll()
        watch.register(self._fd, 0)

        def fire() -> None:
            loop.remove_reader(watch.fileno())
            watch.close()
            on_gone()

        loop.add_reader(watch.fileno(), fire)

    def _write(self, event: dict[str, object]) -> None:
        with suppress(BrokenPipeError):
            os.write(self._fd, json.dumps(event).encode() + b"\n")
