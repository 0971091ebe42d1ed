"""How do frames travel between this gateway's event loop and its schedulers? ZeroMQ DEALERs read without threads.

ZeroMQ's file descriptor tells that something changed, not that a message waits, and tells it once: after every send and
every receive the socket's own event flags must be looked at again.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from pagewire.ipc.codec import new_incarnation
from pagewire.ipc.curve import GATEWAY, CurveError, secure_client
from scheduler_service.gateway.exceptions import StartError

_MAX_FRAME_BYTES = 64 << 20
# Frames taken before other work of the event loop gets its turn.
_MAX_FRAMES_PER_TURN = 256
_HEARTBEAT_PERIOD_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000
_RECONNECT_DELAY_MS = 20
_MAX_RECONNECT_DELAY_MS = 100
_MAX_SOCKETS = 16_384

_Socket = zmq.Socket[bytes]


class Connector:
    """What all connections of a gateway share: who it is, its keys, and ZeroMQ's thread.

    Args:
        version: this gateway's version, told in its greetings.
        model_name: what this gateway serves; engines that serve something else are not used.
        curve_keys: directory with the keys for addresses that are reached over a network.
    Attributes:
        incarnation: of this gateway.
    """

    def __init__(self, version: str, model_name: str, curve_keys: Path | None = None) -> None:
        self.incarnation = new_incarnation()
        self.version = version
        self.model_name = model_name
        self.curve_keys = curve_keys
        self.context: zmq.Context[_Socket] = zmq.Context()
        # An engine takes three, and ZeroMQ would stop at 1,023.
        self.context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)

    def close(self) -> None:
        """Wait until frames that closed sockets have sent have left, or their time is over."""
        self.context.term()


class EngineSocket:
    """A DEALER socket on the running event loop. Frames of several parts are dropped: no message of ours has them.

    Args:
        connector: whose connection it is.
        address: ZeroMQ address to connect to; nobody needs to be there yet.
        on_frames: called with all frames that have arrived, in order.
        on_connect: called when a peer is there.
        on_disconnect: called when the peer is gone, after the last of its frames.
    Raises:
        StartError: the address is not one, or needs keys that are not there, or there are no sockets left.
    """

    def __init__(
        self,
        connector: Connector,
        address: str,
        on_frames: Callable[[list[bytes]], None],
        on_connect: Callable[[], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self._on_frames = on_frames
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._loop = asyncio.get_running_loop()
        self._is_connected = False
        try:
            self._socket, self._monitor = _dealer_and_monitor(connector.context)
        except zmq.ZMQError as error:
            raise StartError(
                f"no socket for the scheduler at {address!r}: {error.strerror}; "
                "raise the limit of open files (ulimit -n), or name fewer engines"
            ) from error
        try:
            secure_client(self._socket, address, connector.curve_keys, GATEWAY)
            self._socket.setsockopt(zmq.IPV6, "[" in address)
            self._socket.connect(address)
        except CurveError as error:
            self._close_sockets(linger_s=0.0)
            raise StartError(f"cannot connect to the scheduler: {error}") from error
        except zmq.ZMQError as error:
            self._close_sockets(linger_s=0.0)
            raise StartError(
                f"cannot connect to the scheduler at {address!r}: {error.strerror}; "
                "give an address such as ipc:///run/pagewire/requests.sock"
            ) from error
        for socket, callback in ((self._socket, self._read), (self._monitor, self._read_monitor)):
            self._loop.add_reader(socket.fileno(), callback)
            self._loop.call_soon(callback)

    def send(self, frame: bytes) -> bool:
        """Send without waiting. False: nobody is connected, or the peer does not read."""
        if not self._is_connected:
            return False
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._look_again()
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close; frames that were sent may take up to `linger_s` to leave."""
        for socket in (self._socket, self._monitor):
            self._loop.remove_reader(socket.fileno())
        self._close_sockets(linger_s)

    def _read(self) -> int:
        """Take some of what has arrived; returns how many frames."""
        frames: list[bytes] = []
        if self._socket.closed:
            return 0
        for _ in range(_MAX_FRAMES_PER_TURN):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            frames.append(parts[0] if len(parts) == 1 else b"")
        if frames:
            self._on_frames(frames)
        self._look_again()
        return len(frames)

    def _close_sockets(self, linger_s: float) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=round(linger_s * 1000))

    def _read_monitor(self) -> None:
        if self._monitor.closed:
            return
        while _can_receive(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            self._is_connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._is_connected:
                self._on_connect()
            else:
                while self._read():
                    pass
                self._on_disconnect()

    def _look_again(self) -> None:
        if not self._socket.closed and _can_receive(self._socket):
            self._loop.call_soon(self._read)


def _can_receive(socket: _Socket) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _dealer_and_monitor(context: "zmq.Context[_Socket]") -> tuple[_Socket, _Socket]:
    dealer: _Socket = context.socket(zmq.DEALER)
    # Keep every token that the peer sends. zmq.IMMEDIATE is not for us: with it a socket that loses its peer forgets
    # what it has not been asked for yet, the peer's last words. So `send` looks itself whether a peer is there.
    dealer.setsockopt(zmq.RCVHWM, 0)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
    dealer.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_PERIOD_MS)
    dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_DELAY_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _MAX_RECONNECT_DELAY_MS)
    try:
        return dealer, dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    except zmq.ZMQError:
        dealer.close()
        raise
