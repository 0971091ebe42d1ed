"""What can be done to the HTTP port with requests of which two readers may think differently?"""

import json
import socket
from contextlib import suppress

from tests.fakes.patience import PATIENCE_S
from tests.hostile.service import HostileService
from tests.hostile.waiting import comes_true

_START = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_SECOND = b"GET /v1/models HTTP/1.1\r\nHost: smuggled\r\n\r\n"
_BODY = b'{"prompt": [1, 2], "max_tokens": 1}'
_LENGTH = b"Content-Length: %d\r\n" % len(_BODY)
_CHUNK = b"%x\r\n%s\r\n" % (len(_BODY), _BODY)

# Each is one request to a careful reader, and wrong; the second begins where a careless one would see another.
SMUGGLING = {
    "both lengths": _START + _LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _SECOND,
    "both lengths, the other way": _START
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"
    + _CHUNK
    + b"0\r\n\r\n",
    "two lengths": _START + _LENGTH + b"Content-Length: 0\r\n\r\n" + _BODY + _SECOND,
    "a list of lengths": _START + b"Content-Length: 3, 4\r\n\r\n" + _BODY + _SECOND,
    "a signed length": _START + b"Content-Length: +3\r\n\r\n" + _BODY + _SECOND,
    "a hexadecimal length": _START + b"Content-Length: 0x3\r\n\r\n" + _BODY + _SECOND,
    "a negative length": _START + b"Content-Length: -1\r\n\r\n" + _BODY + _SECOND,
    "a length of many digits": _START + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + _BODY,
    "an unknown encoding": _START + b"Transfer-Encoding: chunked, identity\r\n\r\n" + _CHUNK + b"0\r\n\r\n" + _SECOND,
    "an encoding that is hidden": _START + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + _CHUNK + b"0\r\n\r\n" + _SECOND,
    "a space before the colon": _START + b"Content-Length : 0\r\n\r\n" + _BODY + _SECOND,
    "a bare line end in a header": _START + b"X-A: b\nTransfer-Encoding: chunked\r\n" + _LENGTH + b"\r\n" + b"x" * 9,
    "a NUL in a header": _START + b"X-A: b\0c\r\n" + _LENGTH + b"\r\n" + _BODY + _SECOND,
    "a chunk size that lies": _START + b"Transfer-Encoding: chunked\r\n\r\n2\r\n" + _BODY + b"\r\n0\r\n\r\n" + _SECOND,
    "a chunk size with a sign": _START
    + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n"
    + _BODY
    + b"\r\n0\r\n\r\n"
    + _SECOND,
    "a chunk size of many digits": _START + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + _BODY,
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n" + _SECOND,
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + _SECOND,
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40),
    "no version": b"GET /v1/models\r\n\r\n" + _SECOND,
    "an unknown version": b"GET /v1/models HTTP/3.7\r\nHost: x\r\n\r\n" + _SECOND,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
}

EVENT_IDS = (
    *(b"", b"x", b":", b"::::", b"a:1:1:1:1-1-0000000", b"a:-1:1:1:1-1-00000000", b"a:1:1:1:1-1-00000000,"),
    *(b"a:99999999999999999999:1:1:1-1-00000000", b"a:1:1:999999:9999999999-9999999999-ffffffff", b"a" * 10_000),
    *(
        b"a:1:1:1:" + b",".join([b"1-1-00000000"] * 40),
        "a:1:1:1:\u0661-1-00000000".encode(),
        b"\xff\xfe",
        b"a:1:1:1:1-1-0000000g",
    ),
)


def smuggling(service: HostileService, size: int) -> list[str]:
    """Requests that careless readers split elsewhere: one error, and nothing else is answered."""
    wrong = []
    for _ in range(size):
        for name, request in SMUGGLING.items():
            answers = _exchange(service.plain.http_port, request)
            num_answers = answers.count(b"HTTP/1.1 ")
            if num_answers != 1 or not answers.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ", b"HTTP/1.1 505 ")):
                wrong.append(f"{name}: {num_answers} answers: {answers[:300]!r}")
    return wrong + service.check_callers()


def head_bombs(service: HostileService, size: int) -> list[str]:
    """Heads that are huge, have many lines, or never end."""
    wrong = []
    bombs = {
        "one huge header": _START + b"X-A: " + b"v" * (4 << 20),
        "many headers": _START + b"".join(b"X-%d: v\r\n" % number for number in range(100_000)),
        "a huge path": b"GET /" + b"a" * (4 << 20),
        "empty lines": b"\r\n" * 100_000,
        "a huge trailer": _START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + b"v" * (4 << 20),
        "a huge chunk extension": _START + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"e" * (4 << 20),
    }
    for _ in range(size):
        for name, request in bombs.items():
            answers = _exchange(service.plain.http_port, request)
            if answers and not answers.startswith(b"HTTP/1.1 4"):
                wrong.append(f"{name}: {answers[:300]!r}")
    return wrong + service.check_callers()


def event_ids(service: HostileService, size: int) -> list[str]:
    """Ids of events that nobody ever sent: each is refused, or is one of an answer that can be made."""
    wrong = []
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 4, "stream": True}).encode()
    for _ in range(size):
        for event_id in EVENT_IDS:
            head = _START + b"Connection: close\r\nContent-Length: %d\r\nLast-Event-ID: %s\r\n\r\n" % (
                len(body),
                event_id,
            )
            answers = _exchange(service.plain.http_port, head + body, ends=False)
            if not answers.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200 ")) or b"internal_error" in answers:
                wrong.append(f"Last-Event-ID {event_id[:60]!r}: {answers[:300]!r}")
    return wrong


def unread_events(service: HostileService, size: int) -> list[str]:
    """Streams of events that nobody reads, until their connections die."""
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 400, "n": 8, "logprobs": 5, "stream": True}).encode()
    opened = []
    for _ in range(size):
        connection = socket.socket()
        opened.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", service.plain.http_port))
        connection.sendall(_START + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wrong = [] if comes_true(lambda: service.num_sequences() > 0, PATIENCE_S) else ["no stream is worked on"]
    wrong += service.check_callers()
    for connection in opened:
        connection.close()
    return wrong


def _exchange(port: int, data: bytes, *, ends: bool = True) -> bytes:
    """Send bytes, and no more unless the connection may stay half open; all that comes until it ends."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection, suppress(ConnectionError):
        # Where the other side has closed already, what it said is still to be read.
        with suppress(OSError):
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65_536):
            received += piece
    return received
