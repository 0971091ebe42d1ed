"""How one message becomes one ZeroMQ frame: a fixed header with both incarnations, then a msgpack body.

    frame:  | magic 4 | sender 8 | recipient 8 | msgpack body ... |

Every process draws a fresh incarnation when it starts. A message names the incarnation it is meant for, so that what
was sent to a dead process is never taken by its successor; `ANY` addresses whoever answers (a first greeting).
"""

import secrets
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

MAGIC = b"PGW1"
INCARNATION_BYTES = 8
ANY = bytes(INCARNATION_BYTES)
_HEADER_BYTES = len(MAGIC) + 2 * INCARNATION_BYTES

Message = TypeVar("Message")


class ProtocolError(Exception):
    """Bytes that are not a message of ours. The receiver counts and drops them, and goes on."""


def new_incarnation() -> bytes:
    """Draw the id of this process start: 8 random bytes, never ANY."""
    return secrets.token_bytes(INCARNATION_BYTES - 1) + b"\x01"


@dataclass(slots=True, frozen=True)
class Envelope(Generic[Message]):
    """A received message and who sent it to whom."""

    sender: bytes
    recipient: bytes
    message: Message


class Codec(Generic[Message]):
    """Encodes any message and decodes those of one union type.

    Args:
        expected: the union of message types that may arrive, for example `GatewayMessage`.
    """

    def __init__(self, expected: object) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(expected)

    def encode(self, message: msgspec.Struct, sender: bytes, recipient: bytes) -> bytes:
        """Frame a message."""
        return MAGIC + sender + recipient + self._encoder.encode(message)

    def decode(self, frame: bytes) -> Envelope[Message]:
        """Take a frame apart.

        Raises:
            ProtocolError: the frame is not a message of the expected union.
        """
        if len(frame) < _HEADER_BYTES or frame[: len(MAGIC)] != MAGIC:
            raise ProtocolError(f"{len(frame)} bytes without the header of a Pagewire message")
        sender = frame[4:12]
        recipient = frame[12:20]
        try:
            message = self._decoder.decode(memoryview(frame)[_HEADER_BYTES:])
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolError(f"undecodable message body: {error}") from error
        return Envelope(sender, recipient, message)
