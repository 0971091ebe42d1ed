"""A DNS server that knows one name, for clients that are told to ask it."""

import socket
import struct
import threading
from types import TracebackType

_ADDRESS_RECORD, _INTERNET, _TTL_S = 1, 1, 1
_ANSWERS = 0x8580
_HEADER_BYTES = 12
_NAME_POINTER = 0xC000 | _HEADER_BYTES


class NameServer:
    """Answers every question for an IPv4 address with all `addresses`, until its context is left."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "NameServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        # header, then the name as labels up to an empty one, then type and class; the client may say more after that
        end = query.index(b"\0", _HEADER_BYTES) + 5
        (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
        records = [
            struct.pack(">HHHIH", _NAME_POINTER, _ADDRESS_RECORD, _INTERNET, _TTL_S, 4) + socket.inet_aton(address)
            for address in (self.addresses if kind == _ADDRESS_RECORD else ())
        ]
        header = query[:2] + struct.pack(">HHHHH", _ANSWERS, 1, len(records), 0, 0)
        return header + query[_HEADER_BYTES:end] + b"".join(records)
