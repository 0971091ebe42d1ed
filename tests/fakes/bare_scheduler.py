"""A bare ROUTER socket that speaks to one worker like a scheduler, and schedules nothing."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import msgspec
import numpy as np
import zmq

from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.requests import Sampling
from pagewire.ipc.steps import (
    AddedSequence,
    AllocateCache,
    EngineConfig,
    LeftSequence,
    StepBatch,
    StepOutput,
    WorkerHello,
    WorkerLoaded,
    WorkerMessage,
    WorkerProgress,
    WorkerReady,
)
from tests.fakes.patience import PATIENCE_S

GREEDY = Sampling(0.0, 0, 1.0, 0.0, 0)

Message = TypeVar("Message", bound=msgspec.Struct)


class BareScheduler:
    """Binds on entering the context; one after another may use one address."""

    def __init__(self, address: str) -> None:
        self.incarnation = new_incarnation()
        self.worker = b""
        self.progress: list[WorkerProgress] = []
        self.left: tuple[LeftSequence, ...] = ()
        self._address = address
        self._routing_id = b""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._codec: Codec[WorkerMessage] = Codec(WorkerMessage)

    def __enter__(self) -> "BareScheduler":
        self._socket.bind(self._address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    # ---- messages -------------------------------------------------------------------------------------------------

    def send(self, message: msgspec.Struct, *, sender: bytes | None = None, recipient: bytes | None = None) -> None:
        """Send a message to the worker, from this incarnation to its own unless told otherwise."""
        self.send_frames(self._codec.encode(message, sender or self.incarnation, recipient or self.worker))

    def send_frames(self, *frames: bytes) -> None:
        """Send raw frames, as one message, to the worker."""
        self._socket.send_multipart((self._routing_id, *frames))

    def wait(self, kind: type[Message]) -> Message:
        """The next message of a kind; progress is collected, and only greetings may come before it."""
        deadline = time.monotonic() + PATIENCE_S
        while self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            routing_id, frame = self._socket.recv_multipart()
            envelope = self._codec.decode(frame)
            message = envelope.message
            if isinstance(message, WorkerHello):
                self._routing_id, self.worker = routing_id, envelope.sender
            elif isinstance(message, WorkerProgress):
                self.progress.append(message)
            if isinstance(message, kind):
                return message
            assert isinstance(message, WorkerHello | WorkerProgress), f"{message} instead of {kind.__name__}"
        raise AssertionError(f"no {kind.__name__} in time")

    def start(self, engine: EngineConfig) -> WorkerLoaded:
        """Bring a worker that greets to where it takes steps."""
        self.wait(WorkerHello)
        self.send(engine)
        loaded = self.wait(WorkerLoaded)
        self.send(AllocateCache(loaded.num_blocks))
        self.left = self.wait(WorkerReady).left
        return loaded

    def step(self, batch: StepBatch) -> list[int]:
        """Have a step executed; its tokens, none of which may be flagged."""
        self.send(batch)
        output = self.wait(StepOutput)
        assert output.step_id == batch.step_id
        assert not any(output.nan_flags)
        return np.frombuffer(output.token_ids, dtype="<i4").tolist()


def int_bytes(numbers: Sequence[int]) -> bytes:
    """Numbers as they travel."""
    return np.array(numbers, dtype="<i4").tobytes()


def make_added(
    slot: int, token_ids: Sequence[int], block_ids: Sequence[int], sampling: Sampling = GREEDY
) -> AddedSequence:
    """A sequence of which nothing is computed yet."""
    return AddedSequence(slot, f"r{slot}", int_bytes(token_ids), len(token_ids), 0, int_bytes(block_ids), sampling)


def make_step(
    slots: Sequence[int],
    num_tokens: Sequence[int],
    sampled: Sequence[int],
    added: Sequence[AddedSequence] = (),
    removed: Sequence[int] = (),
    step_id: int = 0,
) -> StepBatch:
    """A step batch without new blocks."""
    return StepBatch(
        step_id, int_bytes(removed), list(added), b"", b"", int_bytes(slots), int_bytes(num_tokens), bytes(sampled)
    )
