"""One process of the service: start it, read its output, learn how it ended, end it."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from scheduler_service.supervisor.die_with_parent import launch_command

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 14
_DRAIN_S = 1.0
_LISTENING_PREFIX = "gateway listening address="


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one process.

    Attributes:
        num_announced: listening lines that it prints once it works.
        stops_first: it is ended before the others, whose help it may need to finish what it does.
        group: processes of one group live and die together; by default it is a group of its own.
    """

    name: str
    command: tuple[str, ...]
    num_announced: int = 0
    stops_first: bool = False
    group: str = ""


class Child:
    """One start of one process, in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone.

    `addresses` are the listening lines so far, `last_line` the last thing it said on standard error, `started_s` when
    it was started (monotonic).
    """

    def __init__(self, spec: ChildSpec, write_line: Callable[[str, str], None]) -> None:
        self.spec = spec
        self.addresses: list[str] = []
        self.last_line = ""
        self.started_s = time.monotonic()
        self._write_line = write_line
        self._process: asyncio.subprocess.Process | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._is_killed = False

    @property
    def has_announced(self) -> bool:
        """All its listening lines have come."""
        return len(self.addresses) >= self.spec.num_announced

    async def run(self, grace_s: float) -> int:
        """Start the process and wait for its end; gives its exit status, negative for a signal.

        Cancelling sends SIGTERM, then SIGKILL after `grace_s`, and returns once the process is gone.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            *launch_command(self.spec.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
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
            return await process.wait()
        except asyncio.CancelledError:
            await self._stop(process, grace_s)
            raise
        finally:
            self.kill()
            await self._drain()

    def kill(self) -> None:
        """SIGKILL to the process and everything it started, also if it is only just being started."""
        self._is_killed = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _stop(self, process: asyncio.subprocess.Process, grace_s: float) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            logger.warning("child ignores SIGTERM, killing it name=%s pid=%d", self.spec.name, process.pid)
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
        else:
            logger.debug("child said name=%s line=%r", self.spec.name, line)

    def _take_stderr(self, line: str) -> None:
        if line.strip():
            self.last_line = line.strip()
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
