"""What can be done to a gRPC port by a caller who keeps to HTTP/2's grammar, and to nothing else?"""

import random

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.patience import PATIENCE_S
from tests.hostile.http2 import RawConnection, generate_message
from tests.hostile.service import HostileService
from tests.hostile.waiting import comes_true

_WAVE = 100


def rapid_reset(service: HostileService, size: int) -> list[str]:
    """Open streams and reset them at once: `size` calls, half of which have sent their whole request."""
    message = generate_message(200)
    prefixed = b"\0" + len(message).to_bytes(4, "big") + message
    sent = 0
    while sent < size:
        with RawConnection(service.plain.grpc_port) as connection:
            while sent < size and connection.is_open:
                frames: list[Frame] = []
                for number in range(_WAVE):
                    stream_id = connection.next_stream()
                    frames.append(connection.headers(stream_id))
                    if number % 2:
                        frames.append(DataFrame(stream_id, prefixed, flags=["END_STREAM"]))
                    frames.append(connection.cancel(stream_id))
                connection.send(*frames)
                connection.drain()
                sent += _WAVE
    return []


def late_reset(service: HostileService, size: int) -> list[str]:
    """Reset calls once the service works on them, wave after wave."""
    message = generate_message(400)
    with RawConnection(service.plain.grpc_port) as connection:
        for _ in range(max(1, size // _WAVE)):
            streams = [connection.start_call(message) for _ in range(_WAVE)]
            if not comes_true(lambda: service.num_sequences() > 0, PATIENCE_S):
                return ["no call of those that will be reset is worked on"]
            connection.send(*(connection.cancel(stream_id) for stream_id in streams))
            connection.drain()
    return []


def unread_streams(service: HostileService, size: int) -> list[str]:
    """Give no window at all: calls whose answers nobody reads, until the connection dies."""
    zero_window = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}
    with RawConnection(service.plain.grpc_port, zero_window) as connection:
        for _ in range(size):
            connection.start_call(generate_message(400, num_choices=2))
        if not comes_true(lambda: service.num_sequences() > 0, PATIENCE_S):
            return ["no call that nobody reads is worked on"]
    return []


def header_bombs(service: HostileService, size: int) -> list[str]:
    """Heads that are huge, or many, or small on the wire and huge in memory, or never end."""
    wrong = []
    bombs = {
        "one huge header": [("x-a", "v" * (1 << 20))],
        "many headers": [(f"x-{index}", "v") for index in range(20_000)],
        "repeated references to one header": [("x-bomb", "v" * 3000)] * 20_000,
        "a header without end of names": [(f"x-{index}" * 200, "") for index in range(200)],
    }
    for _ in range(size):
        for name, headers in bombs.items():
            with RawConnection(service.plain.grpc_port) as connection:
                stream_id = connection.next_stream()
                whole = connection.headers(stream_id, more=headers).data
                _send_block(connection, stream_id, whole)
                connection.send(PingFrame(0, opaque_data=b"12345678"))
                connection.drain()
            if service.check_callers():
                wrong.append(f"after {name}: {service.check_callers()}")
    return wrong


def _send_block(connection: RawConnection, stream_id: int, block: bytes) -> None:
    pieces = [block[start : start + 16_384] for start in range(0, len(block), 16_384)]
    connection.send(HeadersFrame(stream_id, pieces[0], flags=[] if pieces[1:] else ["END_HEADERS"]))
    for number, piece in enumerate(pieces[1:], start=2):
        flags = ["END_HEADERS"] if number == len(pieces) else []
        connection.send(ContinuationFrame(stream_id, piece, flags=flags))
        if not connection.is_open:
            return


def continuation_flood(service: HostileService, size: int) -> list[str]:
    """Heads that go on and on: empty pieces, and pieces of headers that nobody needs."""
    wrong = []
    for piece in (b"", b"\x00\x01a\x01b" * 1000):
        with RawConnection(service.plain.grpc_port) as connection:
            stream_id = connection.next_stream()
            connection.send(connection.headers(stream_id, ends=False))
            for _ in range(size):
                connection.send(*[ContinuationFrame(stream_id, piece)] * 10)
                if not connection.is_open:
                    break
            wrong += service.check_callers()
    return wrong


def table_abuse(service: HostileService, size: int) -> list[str]:
    """Compression tables that are resized without end, and references to what is in no table."""
    resize = b"\x3f\xe1\x1f\x20"  # to 4,096 and back to 0
    for block in (
        resize * 1000,
        b"\xff\xff\xff\xff\x0f",
        b"\x3f" + b"\xff" * 20,
        b"\x80",
        b"\xbe",
        b"\x40\x7f" + b"\xff" * 9,
    ):
        for _ in range(size):
            with RawConnection(service.plain.grpc_port) as connection:
                connection.send(HeadersFrame(connection.next_stream(), block, flags=["END_HEADERS", "END_STREAM"]))
                connection.drain()
    return []


def frame_floods(service: HostileService, size: int) -> list[str]:
    """Frames that cost their sender little and want an answer, or are about nothing."""
    floods: list[list[Frame]] = [
        [SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 100})],
        [PingFrame(0, opaque_data=b"abcdefgh")],
        [WindowUpdateFrame(0, window_increment=1)],
        [PriorityFrame(1, depends_on=0, stream_weight=1), PriorityFrame(3, depends_on=1, stream_weight=1)],
        [RstStreamFrame(1, error_code=8)],
        [DataFrame(0x7FFFFFFF, b"")],
    ]
    for frames in floods:
        with RawConnection(service.plain.grpc_port) as connection:
            data = b"".join(frame.serialize() for frame in frames) * 100
            for _ in range(size):
                connection.send_bytes(data)
                connection.drain()
                if not connection.is_open:
                    break
    return service.check_callers()


def empty_data(service: HostileService, size: int) -> list[str]:
    """Requests that trickle in as empty pieces, and never end."""
    with RawConnection(service.plain.grpc_port) as connection:
        stream_id = connection.next_stream()
        connection.send(connection.headers(stream_id))
        for _ in range(size):
            connection.send(*[DataFrame(stream_id, b"")] * 100)
            connection.drain()
        return service.check_callers()


def random_frames(service: HostileService, size: int) -> list[str]:
    """Frames of any type, flags, stream and length, and what lies about its length."""
    choice = random.Random(5)
    for _ in range(size):
        with RawConnection(service.plain.grpc_port) as connection:
            for _ in range(20):
                body = choice.randbytes(choice.choice((0, 1, 4, 5, 8, 100)))
                length = len(body) if choice.random() < 0.8 else choice.randrange(1 << 24)
                kind, flags = choice.randrange(12), choice.randrange(256)
                head = length.to_bytes(3, "big") + bytes((kind, flags)) + choice.randrange(1 << 32).to_bytes(4, "big")
                connection.send_bytes(head + body)
    return service.check_callers()


def held_streams(service: HostileService, size: int) -> list[str]:
    """Calls that are begun and then say nothing more, as many as one connection takes."""
    with RawConnection(service.plain.grpc_port) as connection:
        for _ in range(max(1, size // _WAVE)):
            connection.send(*(connection.headers(connection.next_stream()) for _ in range(_WAVE)))
            connection.drain()
        return service.check_callers()
