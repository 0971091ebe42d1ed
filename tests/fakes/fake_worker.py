"""A worker over a real ZeroMQ socket whose model is tests.fakes.step_executor: for tests of the scheduler process."""

import threading

import zmq

from pagewire.ipc.codec import ANY, Codec, new_incarnation
from pagewire.ipc.requests import ModelInfo
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    JoinGroup,
    LeftSequence,
    SchedulerStepMessage,
    StepBatch,
    WorkerHello,
    WorkerLoaded,
    WorkerReady,
)
from tests.fakes.step_executor import VOCAB, StepExecutor

MODEL = ModelInfo(architecture="fake", vocab_size=VOCAB, max_model_len=200, eos_token_ids=())


class FakeWorker:
    """Runs in a thread from construction until `stop`, which is how a killed process looks.

    While `hold` is not set it executes no step. It clears `hold` by itself once it has executed `hold_at` steps.
    `request_ids` are those of the sequences that were in executed steps, in the order in which they got their slots.
    """

    def __init__(
        self,
        address: str,
        num_blocks: int = 64,
        rank: int = 0,
        world_size: int = 1,
        group: bytes = b"",
        left: tuple[LeftSequence, ...] = (),
        model: ModelInfo = MODEL,
    ) -> None:
        self.incarnation = new_incarnation()
        self.num_steps = 0
        self.groups: list[bytes] = []
        self.request_ids: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.hold_at: int | None = None
        self._num_blocks = num_blocks
        self._left = left
        self._model = model
        self._rank, self._world_size, self._group = rank, world_size, group
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._codec: Codec[SchedulerStepMessage] = Codec(SchedulerStepMessage)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it ends: for what a scheduler may not do, as nobody stops it."""
        self._thread.join()

    def stop(self) -> None:
        """End without a word."""
        self._stopping = True
        self.hold.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _send(self, message: object, recipient: bytes) -> None:
        self._socket.send(self._codec.encode(message, self.incarnation, recipient))  # type: ignore[arg-type]

    def _run(self) -> None:
        executor = None
        self._send(WorkerHello(self._rank, self._world_size, 0, self._group), ANY)
        while not self._stopping:
            if not self._socket.poll(20):
                continue
            envelope = self._codec.decode(self._socket.recv())
            message = envelope.message
            if isinstance(message, JoinGroup):
                self.groups.append(message.name)
            elif isinstance(message, EngineConfig):
                block_size = message.block_size
                self._send(
                    WorkerLoaded(self._rank, message.num_blocks or self._num_blocks, self._model), envelope.sender
                )
            elif isinstance(message, AllocateCache):
                executor = StepExecutor(block_size, message.num_blocks)
                executor.hold(self._left)
                self._send(WorkerReady(self._rank, self._left), envelope.sender)
            elif isinstance(message, StepBatch) and executor is not None:
                if self.num_steps == self.hold_at:
                    self.hold.clear()
                self.hold.wait()
                self.request_ids += [added.request_id for added in message.added]
                executor.send(message)
                output = executor.run_next()
                self.num_steps += 1
                if self._rank == 0 and not self._stopping:
                    self._send(output, envelope.sender)
