"""A bare DEALER socket that speaks to a scheduler like a gateway, for tests that need no gRPC."""

import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import zmq

from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.requests import (
    Ended,
    EngineState,
    EngineStatus,
    Hello,
    Located,
    Rejected,
    Sampling,
    SchedulerMessage,
    StepTokens,
    Submit,
)
from tests.fakes.patience import PATIENCE_S


def make_submit(stream_id: int, prompt: list[int], **changes: object) -> Submit:
    """A greedy Submit with plain defaults."""
    fields: dict[str, object] = {
        "stream_id": stream_id,
        "request_id": f"r{stream_id}",
        "token_ids": np.array(prompt, dtype=np.int32).tobytes(),
        "num_prompt_tokens": len(prompt),
        "sampling": Sampling(0.0, 0, 1.0, 0.0, 0),
        "max_tokens": 8,
        "min_tokens": 0,
        "stop_token_ids": (),
        "ignore_eos": True,
        "priority": 0,
        "cache_salt": "",
        "deadline_s": None,
    }
    return Submit(**(fields | changes))  # type: ignore[arg-type]


class BareGateway:
    """Greets at construction; collects what every stream gets."""

    def __init__(self, address: str) -> None:
        self.incarnation = new_incarnation()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(address)
        self.codec: Codec[SchedulerMessage] = Codec(SchedulerMessage)
        self.status: EngineStatus | None = None
        self.accepted: set[int] = set()
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.ended: dict[int, Ended] = {}
        self.rejected: dict[int, Rejected] = {}
        self.located: set[int] = set()
        self.send(Hello("test", 1))

    def send(self, message: object, recipient: bytes = ANY) -> None:
        """Send one message."""
        self.socket.send(self.codec.encode(message, self.incarnation, recipient))  # type: ignore[arg-type]

    def wait(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Read messages until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            remaining_s = deadline - time.monotonic()
            assert remaining_s > 0, "the condition did not hold in time"
            if self.socket.poll(min(1000, int(remaining_s * 1000) + 1)):
                self._take(self.codec.decode(self.socket.recv()).message)

    def wait_ready(self) -> None:
        """Wait until the engine runs requests."""
        self.wait(lambda: self.status is not None and self.status.state is EngineState.READY)

    def close(self) -> None:
        """Go without a word."""
        self.context.destroy(linger=0)

    def _take(self, message: SchedulerMessage) -> None:
        if isinstance(message, EngineStatus):
            self.status = message
        elif isinstance(message, Rejected):
            self.rejected[message.stream_id] = message
        elif isinstance(message, Located):
            self.located.add(message.number)
        elif isinstance(message, StepTokens):
            self.accepted.update(np.frombuffer(message.accepted, dtype="<u4").tolist())
            streams = np.frombuffer(message.stream_ids, dtype="<u4").tolist()
            for stream, token in zip(streams, np.frombuffer(message.token_ids, dtype="<i4").tolist(), strict=True):
                assert stream not in self.ended, "a token after the end"
                self.tokens[stream].append(token)
            for ended in message.ended:
                assert ended.stream_id not in self.ended, "a stream ended twice"
                self.ended[ended.stream_id] = ended
