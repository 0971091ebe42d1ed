"""How does one program run a whole service for itself? The supervisor as a child process that ends with it."""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from pagewire_client.errors import ServiceStartError

_SUPERVISOR = ("scheduler_service.supervisor",)
_STOP_S = 15.0


class LocalService:
    """A supervisor and its processes, private to this one unless it listens elsewhere.

    Stops on `close()`, at the end of a `with` block, when collected, and at exit; if this process is killed, the
    supervisor sees the event pipe close and stops by itself.

    Args:
        model: a GGUF file, a safetensors directory, a Hub id, "demo" or "dummy:NAME".
        listen: addresses to serve; default: a unix socket in a private directory.
        flags: further flags of the supervisor.
    """

    def __init__(self, model: str, *, listen: Sequence[str] = (), flags: Sequence[str] = ()) -> None:
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", *_SUPERVISOR, "--model", model, "--event-fd", str(write_fd)]
        for address in listen:
            command += ["--listen", address]
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [*command, *flags], pass_fds=[write_fd], stdin=subprocess.DEVNULL, start_new_session=True
            )
        finally:
            os.close(write_fd)
        self._events = os.fdopen(read_fd, "rb", buffering=0)
        self._unread = b""
        self._finalizer = weakref.finalize(self, _stop, self._process, self._events, os.getpid())
        self.addresses: list[str] = []
        self.http_urls: list[str] = []
        self.model = ""

    def wait_until_ready(
        self, timeout_s: float | None = None, on_stage: Callable[[str], None] = lambda stage: None
    ) -> None:
        """Wait until requests can be sent; then `addresses`, one or more of each gateway,
        `http_urls`, if it was told to serve HTTP, and `model` are set.

        Args:
            on_stage: called when another part of the start begins.

        Raises:
            ServiceStartError: it did not start; the message says why. The service is closed.
        """
        try:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            while (event := self._next_event(deadline)).get("event") == "stage":
                on_stage(event["stage"])
            if event.get("event") != "ready":
                raise ServiceStartError(event.get("detail") or self._describe_end())
        except TimeoutError:
            self.close()
            raise ServiceStartError(f"the local service was not ready after {timeout_s:.0f} s") from None
        except BaseException:
            self.close()
            raise
        self.addresses = list(event["addresses"])
        self.http_urls = list(event["http_urls"])
        self.model = event["model"]

    def wait(self) -> int:
        """Wait for the end of the service; gives its exit status."""
        return self._process.wait()

    def close(self) -> None:
        """Stop all processes and wait for their end."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_event(self, deadline: float | None) -> dict[str, Any]:
        """The next event; empty once the supervisor is gone.

        Raises:
            TimeoutError: none has come by the deadline, a monotonic time.
        """
        while b"\n" not in self._unread:
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self._events], [], [], remaining)[0]:
                raise TimeoutError
            data = self._events.read(1 << 16)
            if not data:
                return {}
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def _describe_end(self) -> str:
        return f"the local service ended with exit status {self._process.wait()}; see its messages above"


def flags_from(engine_args: Mapping[str, object]) -> list[str]:
    """Flags of the supervisor from keyword arguments: `max_num_seqs=8`, `prefix_caching=False`.

    vLLM's names for switches, such as `enable_prefix_caching`, are understood.
    """
    flags: list[str] = []
    for key, value in engine_args.items():
        name = key.removeprefix("enable_").replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags


def _stop(process: "subprocess.Popen[bytes]", events: IO[bytes], owner_pid: int) -> None:
    """End the supervisor, unless this is a forked copy of the program that started it.

    A pipe without a reader ends it at once; SIGTERM would let streams that nobody reads end first.
    """
    if os.getpid() != owner_pid:
        return
    events.close()
    if process.poll() is None:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
