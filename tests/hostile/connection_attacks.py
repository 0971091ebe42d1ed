"""What can be done with connections alone, over gRPC's port and HTTP's, with TLS and without?"""

import socket
import ssl
import time
from collections.abc import Callable

from tests.fakes.patience import PATIENCE_S
from tests.hostile.http2 import PREFACE, RawConnection
from tests.hostile.service import HostileService
from tests.hostile.waiting import comes_true

_NUM_OPEN = 200
# The service's limits are ten seconds; gRPC's own would be two minutes.
_SLOW_LIMIT_S = 90.0
_HTTP_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def dropped_connections(service: HostileService, size: int) -> list[str]:
    """Open connections, send the beginning of something or nothing, and drop them."""
    plain, encrypted = service.plain, service.encrypted
    hello = _client_hello()
    beginnings = [
        (plain.grpc_port, b""),
        (plain.grpc_port, PREFACE[:10]),
        (plain.grpc_port, PREFACE),
        (plain.grpc_port, PREFACE + _SETTINGS),
        (plain.http_port, b""),
        (plain.http_port, _HTTP_HEAD[:30]),
        (plain.http_port, _HTTP_HEAD + b"\r\n{"),
        (encrypted.grpc_port, hello[:40]),
        (encrypted.grpc_port, hello),
        (encrypted.http_port, hello[:40]),
        (encrypted.http_port, hello),
    ]
    wrong = []
    for start in range(0, size, _NUM_OPEN):
        opened = []
        for number in range(start, min(start + _NUM_OPEN, size)):
            port, beginning = beginnings[number % len(beginnings)]
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
            connection.sendall(beginning)
            opened.append(connection)
        for number, connection in enumerate(opened):
            if number % 2:
                # A reset rather than an end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        wrong += service.check_callers()
        if wrong:
            break
    return wrong


def slow_loris(service: HostileService, size: int) -> list[str]:
    """Connections that send a byte now and then: the service ends every one of them."""
    kinds = [
        (service.plain.grpc_port, PREFACE),
        (service.plain.http_port, _HTTP_HEAD),
        (service.encrypted.grpc_port, _client_hello()),
    ]
    return _trickle(kinds, size, _SLOW_LIMIT_S)


def slow_handshakes(service: HostileService, size: int) -> list[str]:
    """The same over HTTPS, where handshakes may take a minute."""
    return _trickle([(service.encrypted.http_port, _client_hello())], size, PATIENCE_S)


def unfinished_bodies(service: HostileService, size: int) -> list[str]:
    """Requests whose bodies never end hold nobody up, and are forgotten with their connections."""
    opened: list[Callable[[], None]] = []
    for number in range(size):
        if number % 2:
            connection = RawConnection(service.plain.grpc_port)
            connection.send(connection.headers(connection.next_stream()))
            # A message of 3 MiB, of which these are the first bytes.
            connection.send_bytes(b"\x00\x00\x15\x00\x00\x00\x00\x00\x01" + b"\x00\x00\x30\x00\x00" + b"x" * 16)
            opened.append(connection.socket.close)
        else:
            plain = socket.create_connection(("127.0.0.1", service.plain.http_port), PATIENCE_S)
            plain.sendall(_HTTP_HEAD + b"\r\n" + b'{"prompt":')
            opened.append(plain.close)
    wrong = service.check_callers()
    for close in opened:
        close()
    return wrong


def _trickle(kinds: list[tuple[int, bytes]], size: int, limit_s: float) -> list[str]:
    slow = []
    for number in range(size):
        port, text = kinds[number % len(kinds)]
        slow.append((socket.create_connection(("127.0.0.1", port), PATIENCE_S), port, text))
    sent = 0

    def all_have_ended() -> bool:
        nonlocal sent
        for connection, _, text in slow:
            # Never the last byte.
            _send_one_byte(connection, text[min(sent, len(text) - 2) : min(sent, len(text) - 2) + 1])
        sent += 1
        slow[:] = [one for one in slow if not _has_ended(one[0])]
        time.sleep(0.3)
        return not slow

    have_ended = comes_true(all_have_ended, limit_s)
    for connection, _, _ in slow:
        connection.close()
    ports = sorted({port for _, port, _ in slow})
    return [] if have_ended else [f"{len(slow)} slow connections go on, to the ports {ports}"]


def _send_one_byte(connection: socket.socket, data: bytes) -> None:
    try:
        connection.send(data)
    except OSError:
        connection.close()


def _has_ended(connection: socket.socket) -> bool:
    if connection.fileno() < 0:
        return True
    connection.setblocking(False)
    try:
        while data := connection.recv(65_536):
            pass
        ended = not data
    except BlockingIOError:
        ended = False
    except OSError:
        ended = True
    if ended:
        connection.close()
    else:
        connection.settimeout(PATIENCE_S)
    return ended


def _client_hello() -> bytes:
    """The first message of a TLS handshake."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake ended without the other side")
