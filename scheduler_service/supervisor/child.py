"""One process of the service: start it, read its output, learn how it ended, end it."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pagewire.ipc.logs import from_line
from scheduler_service.supervisor.die_with_parent import launch_command

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 14
_DRAIN_S = 1.0
_LISTENING_PREFIX = "gateway listening address="
_HTTP_PREFIX = "gateway http address="


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one process.

    Attributes:
        num_announced: addresses that it prints once it works.
        stops_first: it is ended before the others, whose help it may need to finish what it does.
        group: processes of one group live and die together; by default it is a group of its own.
        max_quiet_s: it takes --supervisor-fd and sends heartbeats there, and hangs if its main thread makes no progress
            for so long; None: it sends none and is not judged.
    """

    name: str
    command: tuple[str, ...]
    num_announced: int = 0
    stops_first: bool = False
    group: str = ""
    max_quiet_s: float | None = None


class Child:
    """One start of one process, in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone.

    `addresses` are those it said so far, `http_addresses` those for HTTP, `last_line` the last thing it said on
    standard error, `end` how it ended, in words. A cancelled `run` sends `stop_signal`, and SIGKILL `grace_s` later.
    """

    def __init__(self, spec: ChildSpec, write_line: Callable[[str, str], None], grace_s: float) -> None:
        self.spec = spec
        self.grace_s = grace_s
        self.addresses: list[str] = []
        self.http_addresses: list[str] = []
        self.last_line = ""
        self.end = ""
        self.stop_signal = signal.SIGTERM
        self._write_line = write_line
        self._process: asyncio.subprocess.Process | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._socket: socket.socket | None = None
        self._hang = ""
        self._is_killed = False

    @property
    def pid(self) -> int:
        """Its process id; 0 before it has one."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def has_announced(self) -> bool:
        """It has said all its addresses."""
        return len(self.addresses) + len(self.http_addresses) >= self.spec.num_announced

    async def run(self) -> int:
        """Start the process and wait for its end; gives its exit status, negative for a signal.

        Cancelling sends `stop_signal`, then SIGKILL after `grace_s`, and returns once it is gone.
        """
        self._process = process = await self._start()
        logger.debug("child started name=%s pid=%d", self.spec.name, process.pid)
        if self._is_killed:
            self.kill()
        assert process.stdout is not None
        assert process.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(process.stdout, self._take_stdout)),
            asyncio.create_task(self._pump(process.stderr, self._take_stderr)),
        ]
        try:
            status = await process.wait()
            self.end = self._hang or (f"exit status {status}" if status >= 0 else f"signal {-status}")
            return status
        except asyncio.CancelledError:
            await self._stop(process)
            raise
        finally:
            self.kill()
            await self._drain()
            if self._socket is not None:
                self._socket.close()

    def receive(self) -> list[bytes]:
        """What it has sent since the last call."""
        messages = []
        with suppress(OSError):
            while self._socket is not None and (data := self._socket.recv(_READ_BYTES)):
                messages.append(data)
        return messages

    def send(self, message: bytes) -> None:
        """Send to it, if it listens."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(message)

    def kill_hung(self, why: str) -> None:
        """SIGKILL, and remember for what."""
        self._hang = f"it hung, with {why}"
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and everything it started, also if it is only just being started."""
        self._is_killed = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _start(self) -> asyncio.subprocess.Process:
        start = partial(
            asyncio.create_subprocess_exec,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        if self.spec.max_quiet_s is None:
            return await start(*launch_command(self.spec.command))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            fd = theirs.fileno()
            return await start(*launch_command((*self.spec.command, "--supervisor-fd", str(fd))), pass_fds=(fd,))

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(self.stop_signal)
        try:
            async with asyncio.timeout(self.grace_s):
                await process.wait()
        except TimeoutError:
            logger.warning(
                "child ignores %s, killing it name=%s pid=%d", self.stop_signal.name, self.spec.name, process.pid
            )
            self.kill()
            await process.wait()

    async def _drain(self) -> None:
        """Read what is left in the pipes, but do not wait for a stranger that keeps them open."""
        _, pending = await asyncio.wait(self._pumps, timeout=_DRAIN_S)
        for pump in pending:
            pump.cancel()

    async def _pump(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        async for line in _lines(stream):
            take(line)

    def _take_stdout(self, line: str) -> None:
        if line.startswith(_LISTENING_PREFIX):
            self.addresses.append(line.removeprefix(_LISTENING_PREFIX))
        elif line.startswith(_HTTP_PREFIX):
            self.http_addresses.append(line.removeprefix(_HTTP_PREFIX))
        else:
            logger.debug("child said name=%s line=%r", self.spec.name, line)

    def _take_stderr(self, line: str) -> None:
        if line.strip():
            entry = from_line(line) or {}
            self.last_line = str(entry.get("message", line)).strip()
        self._write_line(self.spec.name, line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of a pipe; an endless line is cut, so that no child can fill our memory."""
    rest = b""
    while data := await stream.read(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
