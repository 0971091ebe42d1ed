"""The scheduler's two ZeroMQ sockets: what came in, decoded, and what goes out, framed. Garbage stops here."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import zmq

from pagewire.ipc.codec import ANY, Codec, Envelope, ProtocolError
from pagewire.ipc.curve import secure_server

logger = logging.getLogger(__name__)

Message = TypeVar("Message")

_MAX_QUEUED_MESSAGES = 100_000
_MAX_FRAME_BYTES = 64 << 20


class PeerGoneError(Exception):
    """The peer is not connected any more, or has stopped reading."""


class Server(Generic[Message]):
    """A ROUTER socket that many peers of one kind connect to.

    Peers are known by their ZeroMQ routing id. Frames that are no message of ours, or are meant for another
    incarnation, are counted in `num_dropped` and forgotten.

    Args:
        address: ZeroMQ address to bind; a tcp port 0 or `*` takes a free one (see `address` afterwards).
        expected: union of the messages that may arrive.
        incarnation: this process's own.
        role: of the peers; those that come over a network need a key of it.
        curve_keys: directory with the keys for addresses that are reached over a network.

    Raises:
        OSError: the address cannot be bound; the message says which and why.
        CurveError: it needs keys, and there are none.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        expected: object,
        incarnation: bytes,
        role: str,
        curve_keys: Path | None = None,
    ) -> None:
        self._codec: Codec[Message] = Codec(expected)
        self._incarnation = incarnation
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, _MAX_QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.RCVHWM, _MAX_QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.IPV6, "[" in address)
        secure_server(self.socket, address, curve_keys, role)
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            raise OSError(
                f"cannot bind {address}: {zmq.strerror(error.errno or 0)}; choose another address or free it"
            ) from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.num_dropped = 0
        self._monitor: zmq.Socket[bytes] | None = None

    def receive(self) -> Iterator[tuple[bytes, Envelope[Message]]]:
        """Every message that has arrived, with its peer's routing id. Never waits."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            envelope = self._open(frames)
            if envelope is not None:
                yield frames[0], envelope

    def send(self, peer: bytes, message: msgspec.Struct, recipient: bytes) -> None:
        """Queue a message for one peer. Never waits.

        Raises:
            PeerGoneError: nobody has this routing id, or its queue is full.
        """
        try:
            self.socket.send_multipart(
                (peer, self._codec.encode(message, self._incarnation, recipient)), zmq.NOBLOCK, copy=True
            )
        except zmq.ZMQError as error:
            raise PeerGoneError(error.strerror) from error

    def watch_for_losses(self) -> zmq.Socket[bytes]:
        """A socket that can be read from once a peer is lost after this call."""
        if self._monitor is None:
            self._monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        return self._monitor

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; queued messages have `linger_s` to leave, then they are lost."""
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close()
        self.socket.close(linger=round(linger_s * 1000))

    def _open(self, frames: list[bytes]) -> Envelope[Message] | None:
        try:
            if len(frames) != 2:
                raise ProtocolError(f"{len(frames)} frames instead of a routing id and a message")
            envelope = self._codec.decode(frames[1])
        except ProtocolError as error:
            self.num_dropped += 1
            logger.warning("message dropped socket=%s error=%s dropped=%d", self.address, error, self.num_dropped)
            return None
        if envelope.recipient not in (ANY, self._incarnation):
            self.num_dropped += 1
            logger.debug("message for another incarnation dropped socket=%s", self.address)
            return None
        return envelope
