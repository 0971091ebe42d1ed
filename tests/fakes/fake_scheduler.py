"""A scheduler that does what a test says: a real ZeroMQ ROUTER socket on its own thread, without any scheduling.

Tests pop what the gateway sent with `take`, and say what the scheduler answers with `send_tokens` and the like.
"""

import queue
import threading
from array import array
from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

import msgspec
import zmq

from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.requests import (
    Ended,
    EndReason,
    EngineState,
    EngineStatus,
    GatewayMessage,
    Hello,
    Limits,
    Load,
    ModelInfo,
    StepTokens,
    Submit,
)
from tests.fakes.patience import PATIENCE_S

_WAKE_ADDRESS = "inproc://fake-scheduler-outbox"

Message = TypeVar("Message", bound=msgspec.Struct)


class FakeScheduler:
    """Binds `address` on entering the context and closes it on leaving, so one after another may use one address.

    Args:
        address: ZeroMQ address of the request socket.
        vocab_size: of the pretended model.
        max_model_len: of the pretended model, in tokens.
        eos_token_ids: of the pretended model.
        state: told to gateways from the start.
        ignores: messages of these kinds are not kept for `take`.

    `model_name` is told from the next `set_state` on. While `is_silent` is set greetings are not answered; while
    `accepts` is not, requests are neither.
    """

    def __init__(
        self,
        address: str,
        *,
        vocab_size: int = 1000,
        max_model_len: int = 512,
        eos_token_ids: tuple[int, ...] = (),
        state: EngineState = EngineState.READY,
        ignores: tuple[type[msgspec.Struct], ...] = (),
    ) -> None:
        self.address = address
        self.incarnation = new_incarnation()
        self.model = ModelInfo("fake", vocab_size, max_model_len, eos_token_ids)
        self.limits = Limits(max_model_len, 256, 2048, 16, 4096)
        self.is_silent = False
        self.accepts = True
        self.model_name = ""
        self._session = 1
        self._ignores = ignores
        self._status = self._make_status(state)
        self._codec: Codec[GatewayMessage] = Codec(GatewayMessage)
        self._arrived: queue.Queue[msgspec.Struct] = queue.Queue()
        self._gateways: dict[bytes, bytes] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lock = threading.Lock()
        self._outbox = self._context.socket(zmq.PAIR)
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeScheduler":
        self._outbox.bind(_WAKE_ADDRESS)
        self._thread.start()
        assert self._bound.wait(PATIENCE_S), f"{self.address} was not bound"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._outbox.send_multipart([b"stop"])
        self._thread.join(PATIENCE_S)
        self._context.destroy(linger=0)

    # ---- what the gateway sent ------------------------------------------------------------------------------------

    def take(self, kind: type[Message]) -> Message:
        """The gateway's next message (greetings apart), which must be of this kind."""
        message = self._arrived.get(timeout=PATIENCE_S)
        assert isinstance(message, kind), f"{message} is no {kind.__name__}"
        return message

    def take_next(self, kind: type[Message]) -> Message:
        """The next message of this kind; what arrived before it is passed over."""
        while not isinstance(message := self._arrived.get(timeout=PATIENCE_S), kind):
            pass
        return message

    def take_all(self) -> list[msgspec.Struct]:
        """What has arrived by now and was not taken."""
        messages = []
        while not self._arrived.empty():
            messages.append(self._arrived.get())
        return messages

    # ---- what the scheduler says ----------------------------------------------------------------------------------

    def send(self, message: msgspec.Struct, *, sender: bytes | None = None, recipient: bytes | None = None) -> None:
        """Send a message to every gateway, from this incarnation to theirs unless told otherwise."""
        for gateway in list(self._gateways):
            self._post(gateway, self._codec.encode(message, sender or self.incarnation, recipient or gateway))

    def send_bytes(self, *parts: bytes) -> None:
        """Send raw frames, as one message, to every gateway."""
        for gateway in list(self._gateways):
            self._post(gateway, *parts)

    def send_tokens(self, tokens: Iterable[tuple[int, int]], *ended: Ended) -> None:
        """One step: pairs of stream id and token id, then ends."""
        pairs = list(tokens)
        stream_ids = array("I", [stream_id for stream_id, _ in pairs])
        token_ids = array("i", [token_id for _, token_id in pairs])
        self.send(StepTokens(stream_ids.tobytes(), token_ids.tobytes(), list(ended)))

    def send_stream(self, stream_id: int, token_ids: Iterable[int], ended: Ended | None = None) -> None:
        """A step per token for one stream; its end, if given, comes with the last token."""
        ids = list(token_ids)
        for position, token_id in enumerate(ids, start=1):
            is_last = position == len(ids)
            self.send_tokens([(stream_id, token_id)], *([ended] if ended is not None and is_last else []))

    def set_state(
        self, state: EngineState, *, stage: str = "", done: int = 0, total: int = 0, detail: str = ""
    ) -> None:
        """Change the engine's state and tell every gateway."""
        self._status = self._make_status(state, stage, done, total, detail)
        self.send(self._status)

    def forget(self) -> None:
        """Go on as a scheduler that could not reach its gateways for a while: nothing runs for them."""
        self._session += 1
        self._status = msgspec.structs.replace(self._status, session=self._session)
        self.send(self._status)

    def become_another(self) -> None:
        """Go on as a scheduler that was restarted: a new incarnation that knows no stream."""
        self.incarnation = new_incarnation()
        self.send(self._status)

    def _make_status(
        self, state: EngineState, stage: str = "", done: int = 0, total: int = 0, detail: str = ""
    ) -> EngineStatus:
        load = Load(1, 2, 3)
        return EngineStatus(
            state, self.model, self.limits, load, stage, done, total, detail, self.model_name, self._session
        )

    # ---- the socket's thread --------------------------------------------------------------------------------------

    def _post(self, gateway: bytes, *parts: bytes) -> None:
        with self._lock:
            self._outbox.send_multipart([b"send", self._gateways[gateway], *parts])

    def _run(self) -> None:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.SNDHWM, 0)
        router.bind(self.address)
        inbox = self._context.socket(zmq.PAIR)
        inbox.connect(_WAKE_ADDRESS)
        self._bound.set()
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(inbox, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if inbox in ready:
                command, *parts = inbox.recv_multipart()
                if command == b"stop":
                    break
                router.send_multipart(parts)
            if router in ready:
                self._receive(router)
        router.close()
        inbox.close()

    def _receive(self, router: "zmq.Socket[bytes]") -> None:
        routing_id, frame = router.recv_multipart()
        envelope = self._codec.decode(frame)
        if isinstance(envelope.message, Hello):
            if self.is_silent:
                return
            self._gateways[envelope.sender] = routing_id
            router.send_multipart([routing_id, self._codec.encode(self._status, self.incarnation, envelope.sender)])
        else:
            if isinstance(envelope.message, Submit) and self.accepts:
                accepted = array("I", [envelope.message.stream_id]).tobytes()
                news = self._codec.encode(
                    StepTokens(b"", b"", [], accepted=accepted), self.incarnation, envelope.sender
                )
                router.send_multipart([routing_id, news])
            if not isinstance(envelope.message, self._ignores):
                self._arrived.put(envelope.message)


def stop_at_length(stream_id: int) -> Ended:
    """The end of a stream that has all its tokens."""
    return Ended(stream_id, EndReason.LENGTH, None, 0, "")


def stop_at_token(stream_id: int, token_id: int) -> Ended:
    """The end of a stream at a stop token."""
    return Ended(stream_id, EndReason.STOP, token_id, 0, "")
