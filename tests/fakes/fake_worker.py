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
        self._max_steps: int | None = None
        self._may_go_on = threading.Condition()
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

    def hold(self, after: int = 0) -> None:
        """Execute no step any more, once so many are executed."""
        self._limit(after)

    def go_on(self) -> None:
        """Execute all steps."""
        self._limit(None)

    def wait(self) -> None:
        """Until it ends: for what a scheduler may not do, as nobody stops it."""
        self._thread.join()

    def stop(self) -> None:
        """End without a word."""
        with self._may_go_on:
            self._stopping = True
            self._may_go_on.notify()
        self._thread.join()
        self._context.destroy(linger=0)

    def _limit(self, max_steps: int | None) -> None:
        with self._may_go_on:
            self._max_steps = max_steps
            self._may_go_on.notify()

    def _is_held(self) -> bool:
        return self._max_steps is not None and self.num_steps >= self._max_steps and not self._stopping

    def _send(self, message: object, recipient: bytes) -> None:
        self._socket.send(self._codec.encode(message, self.incarnation, recipient))  # type: ignore[arg-type]

    def _run(self) -> None:
        executor = None
        is_known = False
        self._send(WorkerHello(self._rank, self._world_size, 0, self._group), ANY)
        while not self._stopping:
            if not self._socket.poll(20):
                if not is_known:
                    self._send(WorkerHello(self._rank, self._world_size, 0, self._group), ANY)
                continue
            is_known = True
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
                with self._may_go_on:
                    self._may_go_on.wait_for(lambda: not self._is_held())
                if self._stopping:
                    break
                self.request_ids += [added.request_id for added in message.added]
                executor.send(message)
                output = executor.run_next()
                self.num_steps += 1
                if self._rank == 0:
                    self._send(output, envelope.sender)
