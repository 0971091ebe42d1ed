"""How does a signal handler end the loop's wait for messages? A byte on a socket that the loop waits for as well."""

import socket
from contextlib import suppress


class Waker:
    """`wake` may be called from a signal handler or another thread, any number of times."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)

    def fileno(self) -> int:
        """What to wait for."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """End the wait, or the next one."""
        with suppress(BlockingIOError):
            self._sender.send(b"\0")

    def rest(self) -> None:
        """Let the next wait last until somebody wakes again."""
        with suppress(BlockingIOError):
            self._receiver.recv(64)
