"""Who may connect to the scheduler over a network? Answers what ZeroMQ asks (ZAP, RFC 27) about each new peer.

The lists of keys are read for each of them: a key is let in, or no longer, as soon as its file is there or gone.
"""

import logging
from pathlib import Path

import zmq
from zmq.utils import z85

from pagewire.ipc.curve import allowed_keys

logger = logging.getLogger(__name__)

_ADDRESS = "inproc://zeromq.zap.01"
_NUM_FRAMES = 7


class CurveGate:
    """Admits peers whose public keys are in a directory. To be made before the sockets that it watches are bound.

    Args:
        context: the sockets'.
        folder: where the keys are.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self._folder = folder
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ADDRESS)

    def answer(self) -> None:
        """Answer all that has been asked. Never waits."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, request_id = (*frames, b"", b"")[:2]
            code, text = (b"200", b"OK") if self._may_enter(frames) else (b"400", b"this key is not known here")
            self.socket.send_multipart((version, request_id, code, text, b"", b""))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _may_enter(self, frames: list[bytes]) -> bool:
        # version, request id, domain, address, identity, mechanism, the peer's public key
        if len(frames) != _NUM_FRAMES or frames[5] != b"CURVE":
            return False
        domain, address = frames[2].decode(errors="replace"), frames[3].decode(errors="replace")
        if z85.encode(frames[6]) in allowed_keys(self._folder, domain):
            return True
        logger.warning("peer with an unknown key refused role=%s address=%s", domain, address)
        return False
