"""What does the gateway know of one engine, and which streams does its scheduler run for this gateway?

Incarnation rules: a frame for another incarnation of this side is dropped; an EngineStatus from a new scheduler
incarnation replaces the old one, and so does one of another session, for a scheduler that has forgotten this gateway
runs nothing for it; any other message from a scheduler that is not the current one is dropped.

Streams outlive schedulers: those of one that is gone go back to the pool. Wherever a stream is submitted it gets a new
id, so that a word about the old one, should the scheduler be the same after all, cannot be taken for its own.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Protocol

from pagewire.ipc.cache_events import CacheEvents, CacheFlushed
from pagewire.ipc.codec import ANY, Codec, ProtocolError, new_incarnation
from pagewire.ipc.requests import (
    Abort,
    EngineState,
    EngineStatus,
    GatewayMessage,
    Goodbye,
    Hello,
    Locate,
    Located,
    MetricValues,
    Rejected,
    SchedulerMessage,
    StepTokens,
)
from scheduler_service.gateway.engines.cache_watch import CacheWatch
from scheduler_service.gateway.engines.engine_metrics import EngineMetrics
from scheduler_service.gateway.engines.engine_socket import Connector, EngineSocket
from scheduler_service.gateway.engines.status import unknown_status
from scheduler_service.gateway.engines.waiting_streams import RecoveryCounts
from scheduler_service.gateway.exceptions import RequestError
from scheduler_service.gateway.stream import Stream

logger = logging.getLogger(__name__)

_HELLO_PERIOD_S = 0.25
# The scheduler reports several times a second; after so long without a word it is greeted again, then held to be hung.
_QUIET_AFTER_S = 2.0
_HUNG_AFTER_S = 5.0
_FAREWELL_S = 0.2
_MAX_STREAM_ID = 2**32 - 1


class Keeper(Protocol):
    """Who is told of what an engine cannot settle alone."""

    def engine_changed(self, _engine: "Engine") -> None:
        """Its state is another one, or its scheduler."""

    def engine_reported(self, engine: "Engine") -> None:
        """Its scheduler has told its status."""

    def engine_lost(self, engine: "Engine", streams: list[Stream]) -> None:
        """Its scheduler is gone, and nobody runs these streams any more as far as is known."""

    def stream_refused(self, engine: "Engine", stream: Stream, rejected: Rejected) -> None:
        """Its scheduler does not take this stream."""

    def request_located(self, engine: "Engine", located: Located) -> None:
        """Its scheduler says whether it has the request that it was asked for."""


class Engine:
    """The gateway's side of the conversation with one scheduler.

    Args:
        address: ZeroMQ address of the scheduler's request socket.
        connector: how this gateway connects to its engines.
        keeper: told of what happens.
        counts: where losses and dropped frames are counted.
    Raises:
        StartError: the address is not one, or needs keys that are not there.
    Attributes:
        status: the scheduler's last word, or what is known without one.
        has_lost_workers: whether that word is that its workers start, or are gone.
        cache: tells of the scheduler's prefix cache.
        metrics: asks for the engine's metrics.
    """

    def __init__(self, address: str, connector: Connector, keeper: Keeper, counts: RecoveryCounts) -> None:
        self.address = address
        self.has_lost_workers = False
        # Of this side of the conversation, not of the gateway: stream ids are unique in it alone.
        self._incarnation = new_incarnation()
        self.scheduler_incarnation: bytes | None = None
        self._session = 0
        self._num_hellos = 0
        self.status = unknown_status(EngineState.STARTING, stage="waiting for the scheduler")
        self._connector = connector
        self._keeper = keeper
        self._counts = counts
        self._codec: Codec[SchedulerMessage] = Codec(SchedulerMessage)
        self._streams: dict[int, Stream] = {}
        self._lost_incarnation: bytes | None = None
        self._last_stream_id = 0
        # Streams that the scheduler is to stop, and whether they are complete; the others were told, and it may know.
        self._aborts: dict[int, bool] = {}
        self._sent_aborts: dict[int, bool] = {}
        self._last_heard_s = time.monotonic()
        self.metrics = EngineMetrics(self._send_to_scheduler)
        self.cache = CacheWatch(self._send_to_scheduler)
        self._socket = EngineSocket(connector, address, self._receive, self._connected, self._disconnected)
        self._keeping = asyncio.create_task(self._keep_in_touch())

    @property
    def streams(self) -> list[Stream]:
        """Streams that the scheduler runs for this gateway, in the order in which they were submitted."""
        return list(self._streams.values())

    @property
    def num_streams(self) -> int:
        """How many these are."""
        return len(self._streams)

    @property
    def is_ready(self) -> bool:
        """Whether it can run requests now."""
        return self.status.state is EngineState.READY

    @property
    def is_silent(self) -> bool:
        """Whether the scheduler is connected but says nothing."""
        return self.scheduler_incarnation is not None and time.monotonic() - self._last_heard_s > _HUNG_AFTER_S

    def submit(self, stream: Stream) -> bool:
        """Have the scheduler run a stream, with all output that has arrived; False: nobody takes it."""
        # A scheduler that was only out of reach may still run it under its old id.
        self._send_aborts()
        stream.stream_id = self._new_stream_id()
        if not self._send(stream.to_submit(), self.scheduler_incarnation or ANY):
            return False
        self._streams[stream.stream_id] = stream
        return True

    def close(self, stream: Stream) -> None:
        """Forget a stream; if the scheduler still runs it, tell it to stop."""
        if self._streams.get(stream.stream_id) is not stream:
            return
        del self._streams[stream.stream_id]
        if not self._aborts:
            # Callers often leave together: one message for all who leave now.
            asyncio.get_running_loop().call_soon(self._send_aborts)
        self._aborts[stream.stream_id] = stream.is_complete

    def locate(self, number: int, request_id: str) -> bool:
        """Ask whether the scheduler has this request; False: nobody hears the question."""
        return self._send_to_scheduler(Locate(number, request_id))

    def shut_down(self, error: RequestError) -> None:
        """Take leave of the scheduler, which stops all streams, and close the socket."""
        self._keeping.cancel()
        self.status = unknown_status(EngineState.UNAVAILABLE, detail="this gateway has taken its leave")
        self.cache.close(error)
        self._send(Goodbye(), self.scheduler_incarnation or ANY)
        for stream in self._streams.values():
            stream.fail(error)
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
                self._counts.num_dropped += 1
                num_dropped = self._counts.num_dropped
                logger.warning("frame from the scheduler dropped error=%s num_dropped=%d", error, num_dropped)
        self._settle(touched)

    def _take_frame(self, frame: bytes, touched: dict[Stream, None]) -> None:
        envelope = self._codec.decode(frame)
        message = envelope.message
        if envelope.recipient != self._incarnation:
            raise ProtocolError("it is meant for another incarnation of this side")
        if isinstance(message, EngineStatus):
            self._take_status(envelope.sender, message)
        elif envelope.sender != self.scheduler_incarnation:
            raise ProtocolError("it comes from a scheduler that is not the current one")
        elif isinstance(message, StepTokens):
            self._take_tokens(message, touched)
        elif isinstance(message, Rejected):
            if (stream := self._streams.pop(message.stream_id, None)) is not None:
                self._keeper.stream_refused(self, stream, message)
        elif isinstance(message, MetricValues):
            self.metrics.take(message)
        elif isinstance(message, CacheEvents):
            self.cache.take_events(message)
        elif isinstance(message, CacheFlushed):
            self.cache.take_flushed(message)
        elif isinstance(message, Located):
            self._keeper.request_located(self, message)
        self._last_heard_s = time.monotonic()
        self._sent_aborts.clear()

    def _take_status(self, sender: bytes, status: EngineStatus) -> None:
        if status.state is EngineState.READY and (status.model is None or status.limits is None):
            raise ProtocolError("an engine is READY without a model")
        self.has_lost_workers = status.state in (EngineState.STARTING, EngineState.UNAVAILABLE)
        is_another = sender != self.scheduler_incarnation or status.session != self._session
        self._session = status.session
        own_name = self._connector.model_name
        if status.model_name not in ("", own_name):
            detail = f"the engine at {self.address} serves {status.model_name}, this gateway serves {own_name}"
            status = unknown_status(EngineState.UNAVAILABLE, detail=detail)
        is_newly_ready = status.state is EngineState.READY and (not self.is_ready or is_another)
        lost: list[Stream] = []
        if is_another:
            what = "found" if sender != self.scheduler_incarnation else "has forgotten this gateway"
            own, their = self._incarnation.hex(), sender.hex()
            logger.info("scheduler %s incarnation=%s own_incarnation=%s address=%s", what, their, own, self.address)
            lost = self._part_from_scheduler()
            if sender != self._lost_incarnation:
                self._aborts.clear()
            self.scheduler_incarnation = sender
        self._set_status(status, is_news=is_newly_ready)
        if lost:
            self._keeper.engine_lost(self, lost)
        self._keeper.engine_reported(self)
        if is_newly_ready:
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

    def _settle(self, streams: Iterable[Stream]) -> None:
        """News of these has come: let their readers have it, and close those that are finished."""
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
        turn_s = time.monotonic()
        while True:
            # A gateway that was held up itself has heard nothing meanwhile: that is not the scheduler's silence.
            held_up_s = max(0.0, time.monotonic() - turn_s - _HELLO_PERIOD_S)
            turn_s = time.monotonic()
            self._last_heard_s = min(self._last_heard_s + held_up_s, turn_s)
            quiet_s = turn_s - self._last_heard_s
            if self.scheduler_incarnation is None or quiet_s > _QUIET_AFTER_S:
                self._greet()
            if self.is_silent:
                detail = f"the scheduler at {self.address} is silent"
                self._set_status(unknown_status(EngineState.UNAVAILABLE, detail=detail))
            self._send_aborts()
            await asyncio.sleep(_HELLO_PERIOD_S)

    def _connected(self) -> None:
        self._greet()

    def _greet(self) -> None:
        self._num_hellos += 1
        self._send(Hello(self._connector.version, self._num_hellos), ANY)

    def _disconnected(self) -> None:
        if self.scheduler_incarnation is None:
            return
        logger.warning("scheduler lost incarnation=%s address=%s", self.scheduler_incarnation.hex(), self.address)
        streams = self._part_from_scheduler()
        self._set_status(unknown_status(EngineState.UNAVAILABLE, detail=f"no scheduler answers at {self.address}"))
        self._keeper.engine_lost(self, streams)

    def _part_from_scheduler(self) -> list[Stream]:
        """Nobody runs the streams any more, as far as is known; should it be back, it is to stop them."""
        streams = self.streams
        # What was sent since its last word may not have arrived.
        self._aborts = {**self._sent_aborts, **self._aborts, **dict.fromkeys(self._streams, False)}
        self._sent_aborts.clear()
        self._streams.clear()
        self._counts.num_losses += self.scheduler_incarnation is not None
        self._lost_incarnation = self.scheduler_incarnation or self._lost_incarnation
        self.scheduler_incarnation = None
        self.cache.engine_is_lost()
        return streams

    def _set_status(self, status: EngineStatus, *, is_news: bool = False) -> None:
        if status.state is not self.status.state:
            name, detail = status.state.name, status.detail or status.stage
            logger.info("engine state=%s address=%s detail=%s", name, self.address, detail)
            is_news = True
        self.status = status
        if is_news:
            self._keeper.engine_changed(self)

    # ---- sending --------------------------------------------------------------------------------------------------

    def _send(self, message: GatewayMessage, recipient: bytes) -> bool:
        return self._socket.send(self._codec.encode(message, self._incarnation, recipient))

    def _send_to_scheduler(self, message: GatewayMessage) -> bool:
        return self.scheduler_incarnation is not None and self._send(message, self.scheduler_incarnation)

    def _send_aborts(self) -> None:
        complete_ids = tuple(stream_id for stream_id, is_complete in self._aborts.items() if is_complete)
        if self._aborts and self._send_to_scheduler(Abort(tuple(self._aborts), complete_ids)):
            self._sent_aborts |= self._aborts
            self._aborts = {}

    def _new_stream_id(self) -> int:
        while True:
            self._last_stream_id = self._last_stream_id % _MAX_STREAM_ID + 1
            if self._last_stream_id not in self._streams:
                return self._last_stream_id
