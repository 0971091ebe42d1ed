"""How many bytes does a server send, over how many connections? A TCP relay in front of it that counts them."""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType


class CountingProxy:
    """Relays connections to an address until its context is left.

    `num_received` are the bytes that came from there, `num_connections` those there were. The first bytes of each come
    after `delay_s`, as if the server were far away. New connections go to `target`. After `vanish` nothing arrives any
    more, and nobody is told.
    """

    def __init__(self, address: str, delay_s: float = 0.0) -> None:
        self.target = address
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._is_there = threading.Event()
        self._is_there.set()
        self.num_received = 0
        self.num_connections = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def vanish(self) -> None:
        """Be as a machine that has lost its power."""
        self._is_there.clear()

    def __enter__(self) -> "CountingProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_there.set()
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                self._is_there.wait()
                self.num_connections += 1
                host, _, port = self.target.rpartition(":")
                server = socket.create_connection((host, int(port)))
                self._sockets += [caller, server]
                threading.Thread(target=self._relay, args=(caller, server, 0), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, caller, 1), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, weight: int) -> None:
        with suppress(OSError):
            time.sleep(weight * self._delay_s)
            while data := source.recv(1 << 16):
                self._is_there.wait()
                self.num_received += weight * len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
