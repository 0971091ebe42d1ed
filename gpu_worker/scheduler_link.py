"""How do messages travel between this worker and whichever scheduler process is alive?"""

import logging
from pathlib import Path

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from pagewire.ipc.codec import ANY, Codec, Envelope, ProtocolError, new_incarnation
from pagewire.ipc.curve import WORKER, CurveError, secure_client
from pagewire.ipc.steps import SchedulerStepMessage

logger = logging.getLogger(__name__)

_RECONNECT_MS = 20


class AddressError(Exception):
    """The scheduler's address is not one that ZeroMQ understands."""


class SchedulerLink:
    """One ZeroMQ socket to the scheduler's address, which may be bound before or after, and again and again.

    Attributes:
        num_dropped: frames that were not for this worker or no message at all.
        is_connected: whether a scheduler is there.
    """

    def __init__(self, address: str, curve_keys: Path | None = None) -> None:
        """Connect.

        Raises:
            AddressError: the address makes no sense, or needs keys that are not there.
        """
        self.incarnation = new_incarnation()
        self.num_dropped = 0
        self.is_connected = False
        self._codec: Codec[SchedulerStepMessage] = Codec(SchedulerStepMessage)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        # What cannot be delivered now is not kept for a scheduler to come: it would be of no use to it.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            secure_client(self._socket, address, curve_keys, WORKER)
            self._socket.connect(address)
        except CurveError as error:
            self.close()
            raise AddressError(f"cannot connect to the scheduler: {error}") from error
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot connect to scheduler address {address!r}: {error.strerror}") from error

    def receive(self, timeout_s: float) -> Envelope[SchedulerStepMessage] | None:
        """The next message for this worker, or None if there is none in time, or a scheduler has just come or gone."""
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        if self._monitor in ready:
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self.is_connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if self._socket not in ready:
            return None
        frames = self._socket.recv_multipart()
        try:
            if len(frames) != 1:
                raise ProtocolError(f"{len(frames)} frames instead of one")
            envelope = self._codec.decode(frames[0])
        except ProtocolError as error:
            self.drop(str(error))
            return None
        if envelope.recipient not in (ANY, self.incarnation):
            self.drop("it is for another incarnation")
            return None
        return envelope

    def drop(self, reason: str) -> None:
        """Count a message that is not taken, and say why."""
        self.num_dropped += 1
        logger.warning("message dropped reason=%s dropped=%d", reason, self.num_dropped)

    def send(self, message: msgspec.Struct, recipient: bytes) -> None:
        """Send to a scheduler incarnation, or ANY. Without a connection the message is lost, as the peer is."""
        try:
            self._socket.send(self._codec.encode(message, self.incarnation, recipient), zmq.NOBLOCK)
        except zmq.Again:
            logger.debug("message lost, no scheduler is connected type=%s", type(message).__name__)

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving what was sent last this much time to leave."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=int(linger_s * 1000))
        self._context.term()
