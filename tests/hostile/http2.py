"""HTTP/2 frames by hand: what no client library would send."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, SettingsFrame

from pagewire.v1 import generate_pb2
from tests.fakes.patience import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GENERATE = "/pagewire.v1.InferenceService/Generate"
_CANCEL = 8


class RawConnection:
    """A connection to a gRPC port that has sent its preface; ends abruptly on leaving the context.

    Args:
        port: of 127.0.0.1.
        settings: HTTP/2 settings to send.
    """

    def __init__(self, port: int, settings: dict[int, int] | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._encoder = Encoder()
        self._last_stream = -1
        self.is_open = True
        self.send_bytes(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: Frame) -> None:
        """Send frames."""
        self.send_bytes(b"".join(frame.serialize() for frame in frames))

    def send_bytes(self, data: bytes) -> None:
        """Send anything; nothing happens if the other side has closed, which `is_open` then says."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            self.is_open = False

    def next_stream(self) -> int:
        """The id of a new stream."""
        self._last_stream += 2
        return self._last_stream

    def headers(
        self, stream_id: int, path: str = GENERATE, more: Iterable[tuple[str, str]] = (), *, ends: bool = True
    ) -> HeadersFrame:
        """A call's head."""
        named = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
        block = self._encoder.encode([*named, ("content-type", "application/grpc"), *more], huffman=False)
        return HeadersFrame(stream_id, block, flags=["END_HEADERS"] if ends else [])

    def cancel(self, stream_id: int) -> RstStreamFrame:
        """A stream's sudden end."""
        return RstStreamFrame(stream_id, error_code=_CANCEL)

    def start_call(self, message: bytes, path: str = GENERATE) -> int:
        """Make a whole call; gives its stream."""
        stream_id = self.next_stream()
        data = b"\0" + len(message).to_bytes(4, "big") + message
        self.send(self.headers(stream_id, path), DataFrame(stream_id, data, flags=["END_STREAM"]))
        return stream_id

    def drain(self) -> None:
        """Drop what has come so far."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            try:
                while self.socket.recv(1 << 20):
                    pass
                self.is_open = False
            except ConnectionError:
                self.is_open = False
        self.socket.settimeout(PATIENCE_S)

    def wait_for_end(self) -> bool:
        """Read until the other side closes; False if it does not."""
        with suppress(ConnectionError):
            try:
                while self.socket.recv(1 << 20):
                    pass
            except TimeoutError:
                return False
        return True


def generate_message(num_tokens: int, num_choices: int = 1) -> bytes:
    """A request for so many tokens."""
    request = generate_pb2.GenerateRequest(
        token_ids={"ids": [7, 8, 9]}, sampling={"n": num_choices}, stopping={"max_tokens": num_tokens}
    )
    return request.SerializeToString()
