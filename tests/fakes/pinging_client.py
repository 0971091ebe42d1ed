"""A client that speaks just enough HTTP/2 to ping a server, and to hear it object."""

import socket
import struct
import threading
import time

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _PING, _GOAWAY = 4, 6, 7
_ACK = 1


class PingingClient:
    """Pings so often, with no call open, from a thread of its own.

    Args:
        address: "HOST:PORT" or "unix:/path".
    """

    def __init__(self, address: str, period_s: float, num_pings: int) -> None:
        host, _, place = address.rpartition(":")
        if host == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(place)
        else:
            self._socket = socket.create_connection((host, int(place)))
        self._period_s = period_s
        self._num_pings = num_pings
        self._result = ""
        self._num_answers = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> str:
        """Wait for its end. Gives what the server objected, or that pings were not answered."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
        return self._result or ("" if self._num_answers == self._num_pings else f"{self._num_answers} answers")

    def _run(self) -> None:
        with self._socket:
            self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, b""))
            for number in range(self._num_pings):
                self._socket.sendall(_frame(_PING, 0, struct.pack(">Q", number)))
                self._listen(self._period_s)
                if self._result:
                    return

    def _listen(self, duration_s: float) -> None:
        """Read frames until time is up or the server says goodbye."""
        deadline_s = time.monotonic() + duration_s
        while (left_s := deadline_s - time.monotonic()) > 0 and not self._result:
            self._socket.settimeout(left_s)
            try:
                head = self._socket.recv(9, socket.MSG_WAITALL)
            except TimeoutError:
                return
            if len(head) < 9:
                self._result = "closed"
                return
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            payload = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
            if kind == _PING and flags & _ACK:
                self._num_answers += 1
            elif kind == _PING:
                self._socket.sendall(_frame(_PING, _ACK, payload))
            elif kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, b""))
            elif kind == _GOAWAY:
                self._result = payload[8:].decode(errors="replace") or "goodbye"


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + bytes(4) + payload
