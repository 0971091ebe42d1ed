"""What does the gateway know of its scheduler, and which streams does the scheduler run for it?

Incarnation rules: a frame for another gateway incarnation is dropped; an EngineStatus from a new scheduler incarnation
replaces the old one; any other message from a scheduler that is not the current one is dropped.

Streams outlive schedulers. Those of one that is gone wait; once a scheduler is READY each is submitted to it with its
prompt and all output that has arrived. It gets a new id then, so that a word about the old one, should the scheduler
be the same after all, cannot be taken for its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pagewire.ipc.cache_events import CacheEvents, CacheFlushed
from pagewire.ipc.codec import ANY, Codec, ProtocolError, new_incarnation
from pagewire.ipc.requests import (
    Abort,
    EngineState,
    EngineStatus,
    GatewayMessage,
    Goodbye,
    Hello,
    Limits,
    Load,
    MetricValues,
    ModelInfo,
    Rejected,
    RejectReason,
    SchedulerMessage,
    StepTokens,
)
from scheduler_service.gateway.config import DEFAULT_RECOVERY_TIMEOUT_S
from scheduler_service.gateway.engines.cache_watch import CacheWatch
from scheduler_service.gateway.engines.engine_metrics import EngineMetrics
from scheduler_service.gateway.engines.recovery import RecoveryCounts, WaitingStreams
from scheduler_service.gateway.engines.scheduler_socket import SchedulerSocket
from scheduler_service.gateway.exceptions import (
    EngineOverloadedError,
    EngineUnavailableError,
    GatewayDrainingError,
    InvalidArgumentError,
    RequestError,
)
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.stream import Stream
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_HELLO_PERIOD_S = 0.25
# The scheduler reports every second; after this long without a word it is greeted again, then held to be hung.
_QUIET_AFTER_S = 2.0
_HUNG_AFTER_S = 10.0
_FAREWELL_S = 0.2
_MAX_STREAM_ID = 2**32 - 1
# Submit field -> field of the public API.
_PUBLIC_FIELDS = {"token_ids": "prompt", "max_tokens": "stopping.max_tokens", "resumes": "resume"}


class SchedulerClient:
    """The gateway's side of the conversation with one scheduler.

    Args:
        address: ZeroMQ address of the scheduler's request socket.
        version: this gateway's version, told in the greeting.
        tokenizer: turns the streams' tokens into text.
        on_state_change: called whenever `status.state` has changed.
        recovery_timeout_s: how long streams wait for another scheduler when theirs is gone.
        curve_keys: directory with the keys for a scheduler that is reached over a network.
    Attributes:
        cache: tells of the scheduler's prefix cache.
    """

    def __init__(
        self,
        address: str,
        version: str,
        tokenizer: Tokenizer,
        on_state_change: Callable[[], None],
        recovery_timeout_s: float = DEFAULT_RECOVERY_TIMEOUT_S,
        curve_keys: Path | None = None,
    ) -> None:
        self.incarnation = new_incarnation()
        self.scheduler_incarnation: bytes | None = None
        self.status = _status(EngineState.STARTING, stage="waiting for the scheduler")
        self._address = address
        self._version = version
        self._tokenizer = tokenizer
        self._on_state_change = on_state_change
        self._codec: Codec[SchedulerMessage] = Codec(SchedulerMessage)
        self._streams: dict[int, Stream] = {}
        self._waiting = WaitingStreams(recovery_timeout_s)
        self._recovery_timeout_s = recovery_timeout_s
        self._wait_is_over = asyncio.Event()
        self._lost_incarnation: bytes | None = None
        self._last_stream_id = 0
        # Streams that the scheduler is to stop, and whether they are complete.
        self._aborts: dict[int, bool] = {}
        self._last_heard_s = time.monotonic()
        self.counts = RecoveryCounts()
        self.engine_metrics = EngineMetrics(self._send_to_scheduler)
        self.cache = CacheWatch(self._send_to_scheduler)
        self._socket = SchedulerSocket(address, self._receive, self._connected, self._disconnected, curve_keys)
        self._keeper = asyncio.create_task(self._keep_in_touch())

    @property
    def num_streams(self) -> int:
        """Streams that the scheduler runs for this gateway, or that wait for one that does."""
        return len(self._streams) + len(self._waiting)

    @property
    def num_waiting_streams(self) -> int:
        """Streams that wait for a scheduler."""
        return len(self._waiting)

    @property
    def is_silent(self) -> bool:
        """Whether the scheduler is connected but says nothing."""
        return self.scheduler_incarnation is not None and time.monotonic() - self._last_heard_s > _HUNG_AFTER_S

    def open(self, generation: Generation) -> Stream:
        """Submit a request. Give the stream back with `close`, however it ends.

        Raises:
            EngineUnavailableError: nobody can run it now.
        """
        self.ready_engine()
        stream = Stream(self._new_stream_id(), generation, self._tokenizer)
        if not stream.is_finished and not self._submit(stream):
            raise EngineUnavailableError("the scheduler does not take requests now")
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream; if the scheduler still runs it, tell it to stop."""
        if self._waiting.discard(stream) or self._streams.pop(stream.stream_id, None) is None:
            return
        if not self._aborts:
            # Callers often leave together: one message for all who leave now.
            asyncio.get_running_loop().call_soon(self._send_aborts)
        self._aborts[stream.stream_id] = stream.is_complete

    def ready_engine(self) -> tuple[ModelInfo, Limits]:
        """What the engine runs, if it can run requests.

        Raises:
            EngineUnavailableError: it cannot; the message says what it is doing instead.
        """
        status = self.status
        if status.state is EngineState.UNAVAILABLE:
            raise EngineUnavailableError(f"the engine is unavailable: {status.detail}")
        if status.state is EngineState.STARTING:
            progress = f" ({status.done} of {status.total})" if status.total else ""
            raise EngineUnavailableError(f"the engine is starting: {status.stage or 'loading'}{progress}")
        if status.state is EngineState.DRAINING:
            raise EngineUnavailableError(f"the engine {status.detail or 'drains'}")
        assert status.model is not None
        assert status.limits is not None
        return status.model, status.limits

    async def wait_for_engine(self) -> None:
        """Wait until the engine can run requests, or nobody will: as long as open streams wait for a scheduler."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._recovery_timeout_s):
                await self._wait_is_over.wait()

    def end_streams(self, error: RequestError) -> None:
        """Nobody will run them any more: end every stream with this error."""
        self._wait_is_over.set()
        waiting = self._waiting.all()
        for stream in waiting:
            self._waiting.discard(stream)
        streams = [*self._streams.values(), *waiting]
        for stream in streams:
            stream.fail(error)
        self._settle(streams)

    def shut_down(self) -> None:
        """Take leave of the scheduler, which stops all streams, and close the socket."""
        self._keeper.cancel()
        self._wait_is_over.set()
        self.cache.close(GatewayDrainingError())
        self._send(Goodbye(), self.scheduler_incarnation or ANY)
        for stream in [*self._streams.values(), *self._waiting.all()]:
            stream.fail(GatewayDrainingError())
            stream.wake()
        # The farewell covers them all: there is nothing to tell of those that are closed from now on.
        self._streams.clear()
        self._aborts.clear()
        self._socket.close(linger_s=_FAREWELL_S)

    # ---- frames ---------------------------------------------------------------------------------------------------

    def _receive(self, frames: list[bytes]) -> None:
        """Take all frames that have arrived, then settle each stream once."""
        touched: dict[Stream, None] = {}
        for frame in frames:
            try:
                self._take_frame(frame, touched)
            except ProtocolError as error:
                self.counts.num_dropped += 1
                num_dropped = self.counts.num_dropped
                logger.warning("frame from the scheduler dropped error=%s num_dropped=%d", error, num_dropped)
        self._settle(touched)

    def _take_frame(self, frame: bytes, touched: dict[Stream, None]) -> None:
        envelope = self._codec.decode(frame)
        message = envelope.message
        if envelope.recipient != self.incarnation:
            raise ProtocolError("it is meant for another gateway incarnation")
        if isinstance(message, EngineStatus):
            self._take_status(envelope.sender, message)
        elif envelope.sender != self.scheduler_incarnation:
            raise ProtocolError("it comes from a scheduler that is not the current one")
        elif isinstance(message, StepTokens):
            self._take_tokens(message, touched)
        elif isinstance(message, Rejected):
            self._take_rejection(message, touched)
        elif isinstance(message, MetricValues):
            self.engine_metrics.take(message)
        elif isinstance(message, CacheEvents):
            self.cache.take_events(message)
        elif isinstance(message, CacheFlushed):
            self.cache.take_flushed(message)
        self._last_heard_s = time.monotonic()

    def _take_status(self, sender: bytes, status: EngineStatus) -> None:
        if status.state is EngineState.READY and (status.model is None or status.limits is None):
            raise ProtocolError("an engine is READY without a model")
        is_newly_ready = self.status.state is not EngineState.READY or sender != self.scheduler_incarnation
        if sender != self.scheduler_incarnation:
            logger.info("scheduler found incarnation=%s address=%s", sender.hex(), self._address)
            self._part_from_scheduler()
            if sender != self._lost_incarnation:
                self._aborts.clear()
            self.scheduler_incarnation = sender
        self._set_status(status)
        self._resubmit()
        if status.state is EngineState.READY and is_newly_ready:
            self.cache.engine_is_ready()

    def _take_tokens(self, step: StepTokens, touched: dict[Stream, None]) -> None:
        try:
            stream_ids = memoryview(step.stream_ids).cast("I")
            token_ids = memoryview(step.token_ids).cast("i")
            accepted = memoryview(step.accepted).cast("I")
        except TypeError as error:
            raise ProtocolError(f"an array of a step is not one of 32-bit integers: {error}") from error
        if len(stream_ids) != len(token_ids):
            raise ProtocolError(f"a step has {len(stream_ids)} streams and {len(token_ids)} tokens")
        streams = self._streams
        for stream_id in accepted:
            if (stream := streams.get(stream_id)) is not None:
                stream.accept()
                touched[stream] = None
        for started in step.started:
            if (stream := streams.get(started.stream_id)) is not None:
                stream.start(started.num_cached_tokens)
        for stream_id, records in step.prompt_logprobs.items():
            if (stream := streams.get(stream_id)) is not None:
                stream.push_prompt_logprobs(records)
                touched[stream] = None
        for stream_id, token_id in zip(stream_ids, token_ids, strict=True):
            # Streams that were aborted still get the tokens that were on their way.
            if (stream := streams.get(stream_id)) is not None:
                stream.push(token_id)
                touched[stream] = None
        for stream_id, records in step.logprobs.items():
            if (stream := streams.get(stream_id)) is not None:
                stream.push_logprobs(records)
        for ended in step.ended:
            if (stream := streams.pop(ended.stream_id, None)) is not None:
                stream.end(ended)
                touched[stream] = None

    def _take_rejection(self, rejected: Rejected, touched: dict[Stream, None]) -> None:
        if (stream := self._streams.pop(rejected.stream_id, None)) is not None:
            stream.fail(_rejection(rejected))
            touched[stream] = None

    def _settle(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            try:
                stream.look_for_stop()
            except Exception as error:
                # A fault in one stream's text must not reach the others; its own caller is told.
                stream.fail(error)
            stream.wake()
            if stream.is_finished:
                self.close(stream)

    # ---- the scheduler's presence ---------------------------------------------------------------------------------

    async def _keep_in_touch(self) -> None:
        while True:
            quiet_s = time.monotonic() - self._last_heard_s
            if self.scheduler_incarnation is None or quiet_s > _QUIET_AFTER_S:
                self._send(Hello(self._version), ANY)
            if self.scheduler_incarnation is not None and quiet_s > _HUNG_AFTER_S:
                self._set_status(_status(EngineState.UNAVAILABLE, detail=f"the scheduler at {self._address} is silent"))
            self._send_aborts()
            self._resubmit()
            for stream, error in self._waiting.overdue():
                stream.fail(error)
                self._settle([stream])
            await asyncio.sleep(_HELLO_PERIOD_S)

    def _connected(self) -> None:
        self._send(Hello(self._version), ANY)

    def _disconnected(self) -> None:
        if self.scheduler_incarnation is None:
            return
        logger.warning("scheduler lost incarnation=%s address=%s", self.scheduler_incarnation.hex(), self._address)
        self._part_from_scheduler()
        self._set_status(_status(EngineState.UNAVAILABLE, detail=f"no scheduler answers at {self._address}"))

    def _part_from_scheduler(self) -> None:
        """Nobody runs the streams any more, as far as is known: they wait."""
        if self._streams:
            logger.warning("streams wait for another scheduler num_streams=%d", len(self._streams))
        self._aborts |= dict.fromkeys(self._streams, False)
        for stream in self._streams.values():
            self._waiting.add(stream)
        self._streams.clear()
        self.counts.num_losses += self.scheduler_incarnation is not None
        self._lost_incarnation = self.scheduler_incarnation or self._lost_incarnation
        self.scheduler_incarnation = None
        self.cache.engine_is_lost()

    def _resubmit(self) -> None:
        """Give all streams that wait to the scheduler, if it is ready for them."""
        if self.status.state is not EngineState.READY or not self._waiting:
            return
        # A scheduler that was only out of reach may still run them under their old ids.
        self._send_aborts()
        streams = self._waiting.all()
        for stream in streams:
            stream.stream_id = self._new_stream_id()
            if not self._submit(stream):
                break
            self._waiting.discard(stream)
        self.counts.num_recovered += len(streams) - len(self._waiting)
        logger.info("streams resubmitted num_streams=%d of=%d", len(streams) - len(self._waiting), len(streams))

    def _set_status(self, status: EngineStatus) -> None:
        changed = status.state is not self.status.state
        self.status = status
        if status.state is EngineState.READY:
            self._wait_is_over.set()
        else:
            self._wait_is_over.clear()
        if changed:
            logger.info("engine state=%s detail=%s", status.state.name, status.detail)
            self._on_state_change()

    # ---- sending --------------------------------------------------------------------------------------------------

    def _send(self, message: GatewayMessage, recipient: bytes) -> bool:
        return self._socket.send(self._codec.encode(message, self.incarnation, recipient))

    def _send_to_scheduler(self, message: GatewayMessage) -> bool:
        return self.scheduler_incarnation is not None and self._send(message, self.scheduler_incarnation)

    def _submit(self, stream: Stream) -> bool:
        if not self._send(stream.to_submit(), self.scheduler_incarnation or ANY):
            return False
        self._streams[stream.stream_id] = stream
        return True

    def _send_aborts(self) -> None:
        if self.scheduler_incarnation is None:
            return
        complete_ids = tuple(stream_id for stream_id, is_complete in self._aborts.items() if is_complete)
        if self._aborts and self._send(Abort(tuple(self._aborts), complete_ids), self.scheduler_incarnation):
            self._aborts.clear()

    def _new_stream_id(self) -> int:
        while True:
            self._last_stream_id = self._last_stream_id % _MAX_STREAM_ID + 1
            if self._last_stream_id not in self._streams:
                return self._last_stream_id


def _status(state: EngineState, *, stage: str = "", detail: str = "") -> EngineStatus:
    """What is known without a word from the scheduler."""
    return EngineStatus(state, None, None, Load(0, 0, 0), stage, 0, 0, detail)


def _rejection(rejected: Rejected) -> RequestError:
    match rejected.reason:
        case RejectReason.INVALID:
            return InvalidArgumentError(_PUBLIC_FIELDS.get(rejected.field, rejected.field), rejected.message)
        case RejectReason.OVERLOADED:
            return EngineOverloadedError(rejected.message, rejected.field, rejected.retry_after_s)
        case RejectReason.UNAVAILABLE:
            return EngineUnavailableError(rejected.message)
