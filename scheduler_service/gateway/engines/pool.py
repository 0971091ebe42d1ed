"""Which engine runs each open stream? Opens streams on engines, and moves them when theirs cannot go on.

A stream that no engine runs waits; once one is READY it is submitted there with its prompt and all output that has
arrived. It moves when

    its engine's scheduler is gone or silent,
    or has forgotten this gateway                and any engine is READY, be it the same one
    its engine's workers died                    and another engine is READY; the same one has it requeued otherwise
    its engine drains or is no longer listed     and another engine is READY, if it has not begun to run
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from pagewire.ipc.requests import (
    EngineState,
    EngineStatus,
    Limits,
    Located,
    MetricValues,
    ModelInfo,
    Rejected,
    RejectReason,
)
from scheduler_service.gateway.config import DEFAULT_RECOVERY_TIMEOUT_S
from scheduler_service.gateway.engines import status
from scheduler_service.gateway.engines.cache_union import CacheUnion
from scheduler_service.gateway.engines.chooser import Choice, Chooser
from scheduler_service.gateway.engines.discovery import Discovery
from scheduler_service.gateway.engines.engine import Engine
from scheduler_service.gateway.engines.engine_socket import Connector
from scheduler_service.gateway.engines.refusals import Refusals, to_error
from scheduler_service.gateway.engines.searches import Searches
from scheduler_service.gateway.engines.waiting_streams import RecoveryCounts, WaitingStreams
from scheduler_service.gateway.exceptions import EngineUnavailableError, GatewayDrainingError, RequestError
from scheduler_service.gateway.generation import Generation
from scheduler_service.gateway.stream import Stream
from scheduler_service.gateway.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_TENDING_PERIOD_S = 0.25


class EnginePool:
    """The engines that this gateway knows.

    Args:
        addresses: where their schedulers are; see `Discovery`.
        connector: how this gateway connects to them.
        tokenizer: turns the streams' tokens into text.
        on_state_change: called whenever the state of the engines together has changed.
        chooser: says which engine gets a request.
        recovery_timeout_s: how long streams wait for an engine when theirs is gone.
    Attributes:
        cache: tells of the engines' prefix caches.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        connector: Connector,
        tokenizer: Tokenizer,
        on_state_change: Callable[[], None],
        chooser: Chooser,
        recovery_timeout_s: float = DEFAULT_RECOVERY_TIMEOUT_S,
    ) -> None:
        self.counts = RecoveryCounts()
        self.cache = CacheUnion()
        self._connector = connector
        self._tokenizer = tokenizer
        self._on_state_change = on_state_change
        self._chooser = chooser
        self._recovery_timeout_s = recovery_timeout_s
        self._engines: dict[str, Engine] = {}
        self._listed: frozenset[str] = frozenset()
        self._engine_of: dict[Stream, Engine] = {}
        self._waiting = WaitingStreams(recovery_timeout_s)
        self._searches = Searches()
        self._refusals: dict[Stream, Refusals] = {}
        self._wait_is_over = asyncio.Event()
        self._state = EngineState.STARTING
        self._discovery = Discovery(addresses, self._take_addresses)
        self._discovery.start()
        self._tending = asyncio.create_task(self._tend())

    # ---- what is known of the engines -----------------------------------------------------------------------------

    @property
    def incarnation(self) -> bytes:
        """Of this gateway."""
        return self._connector.incarnation

    @property
    def scheduler_incarnations(self) -> list[bytes]:
        """Of the schedulers that are connected."""
        incarnations = [engine.scheduler_incarnation for engine in self._engines.values()]
        return [incarnation for incarnation in incarnations if incarnation is not None]

    @property
    def engines(self) -> list[Engine]:
        """All that are known, listed or not."""
        return list(self._engines.values())

    @property
    def status(self) -> EngineStatus:
        """What they are together."""
        return status.merge(self._statuses())

    @property
    def is_silent(self) -> bool:
        """Whether all are connected but say nothing."""
        return all(engine.is_silent for engine in self._engines.values())

    @property
    def num_streams(self) -> int:
        """Streams that engines run for this gateway, or that wait for one."""
        return sum(engine.num_streams for engine in self._engines.values()) + self.num_waiting_streams

    @property
    def num_waiting_streams(self) -> int:
        """Streams that no engine runs."""
        return len(self._waiting) + len(self._searches)

    def ready_engine(self) -> tuple[ModelInfo, Limits]:
        """What the engines run, if one can run requests, and what every one of these takes.

        Raises:
            EngineUnavailableError: none can; the message says what they are doing instead.
        """
        return status.ready_engine(self._statuses())

    async def wait_for_engine(self) -> None:
        """Wait until an engine can run requests, or nobody will: as long as open streams wait for one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._recovery_timeout_s):
                await self._wait_is_over.wait()

    async def metrics(self, timeout_s: float) -> list[MetricValues]:
        """What the engines count now, of those that say so in time; several are told apart by their addresses."""
        engines = self.engines
        answers = await asyncio.gather(*(engine.metrics.ask(timeout_s) for engine in engines))
        values = [(engine.address, answer) for engine, answer in zip(engines, answers, strict=True) if answer]
        if len(engines) == 1:
            return [answer for _, answer in values]
        return [
            msgspec.structs.replace(answer, labels={**answer.labels, "engine": address}) for address, answer in values
        ]

    # ---- streams --------------------------------------------------------------------------------------------------

    def open(self, generation: Generation) -> Stream:
        """Submit a request. Give the stream back with `close`, however it ends.

        Raises:
            EngineUnavailableError: nobody can run it now.
        """
        self.ready_engine()
        stream = Stream(generation, self._tokenizer)
        if stream.is_finished or (generation.is_resumed and self._search(stream)):
            return stream
        if not self._place(stream):
            raise EngineUnavailableError("no scheduler takes requests now")
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream; if an engine still runs it, tell it to stop."""
        self._waiting.discard(stream)
        self._searches.discard(stream)
        self._refusals.pop(stream, None)
        engine = self._take_back(stream)
        if engine is not None:
            engine.close(stream)

    def end_streams(self, error: RequestError) -> None:
        """Nobody will run them any more: end every stream with this error."""
        self._wait_is_over.set()
        for stream in [*self._engine_of, *self._waiting.all(), *self._searches.all()]:
            self._fail(stream, error)

    def shut_down(self) -> None:
        """Take leave of all engines, which stop all streams, and close the sockets."""
        self._tending.cancel()
        self._discovery.close()
        self._wait_is_over.set()
        self.cache.close(GatewayDrainingError())
        for engine in self._engines.values():
            engine.shut_down(GatewayDrainingError())
        for stream in [*self._waiting.all(), *self._searches.all()]:
            self._fail(stream, GatewayDrainingError())
        self._connector.close()

    def _place(self, stream: Stream) -> bool:
        """Submit a stream to an engine that is READY and has not refused it. False: there is none."""
        refusals = self._refusals.get(stream, ())
        candidates = [engine for engine in self._usable() if engine.address not in refusals]
        while candidates:
            choice = self._chooser.choose(candidates, stream)
            if self._submit(stream, choice):
                return True
            candidates.remove(choice.engine)
        return False

    def _submit(self, stream: Stream, choice: Choice) -> bool:
        if not choice.engine.submit(stream):
            return False
        self._engine_of[stream] = choice.engine
        self._chooser.note_placed(stream, choice)
        return True

    def _take_back(self, stream: Stream) -> Engine | None:
        """The stream is no engine's any more; returns whose it was."""
        engine = self._engine_of.pop(stream, None)
        if engine is not None:
            self._chooser.note_left(stream)
        return engine

    def _search(self, stream: Stream) -> bool:
        """Ask who has the sequence of a request that is resumed, if it could be several. False: nobody is asked."""
        return len(self._engines) > 1 and self._searches.begin(stream, self.engines)

    def _place_or_wait(self, stream: Stream) -> None:
        if not self._place(stream):
            self._let_wait(stream)

    def _let_wait(self, stream: Stream) -> None:
        """No engine has the stream. What engines said of it before says nothing of what they will say."""
        self._refusals.pop(stream, None)
        self._waiting.add(stream)

    def _fail(self, stream: Stream, error: RequestError) -> None:
        stream.fail(error)
        stream.wake()
        self.close(stream)

    # ---- what engines tell (see Keeper) ---------------------------------------------------------------------------

    def engine_changed(self, _engine: Engine) -> None:
        """An engine is in another state, or has another scheduler."""
        self._take_stock()

    def engine_reported(self, engine: Engine) -> None:
        """An engine has told its load."""
        self._chooser.note_load(engine)

    def engine_lost(self, engine: Engine, streams: list[Stream]) -> None:
        """An engine's scheduler is gone, and with it whoever ran these streams."""
        self._discovery.look_again()
        if streams:
            logger.warning("streams lost their engine num_streams=%d address=%s", len(streams), engine.address)
        for stream in streams:
            self._take_back(stream)
            self._let_wait(stream)
        for stream in self._searches.lose(engine):
            self._place_or_wait(stream)
        self._take_stock()

    def stream_refused(self, engine: Engine, stream: Stream, rejected: Rejected) -> None:
        """An engine does not take a stream: others may, but what is wrong here is wrong there."""
        self._take_back(stream)
        if rejected.reason is RejectReason.INVALID:
            self._fail(stream, to_error(rejected))
        elif stream.is_accepted and rejected.reason is RejectReason.UNAVAILABLE:
            self._let_wait(stream)
        else:
            refusals = self._refusals.setdefault(stream, Refusals())
            refusals.add(engine.address, rejected)
            if not self._place(stream):
                self._fail(stream, refusals.error)

    def request_located(self, engine: Engine, located: Located) -> None:
        """An engine has the sequence of a request that is resumed, or has not."""
        found = self._searches.take(engine, located)
        if found is None:
            return
        stream, its_engine = found
        # Who has the sequence has computed it.
        if its_engine is None or not self._submit(stream, Choice(its_engine, stream.num_tokens)):
            self._place_or_wait(stream)

    # ---- looking after the streams --------------------------------------------------------------------------------

    def _statuses(self) -> list[EngineStatus]:
        return [engine.status for engine in self._engines.values()]

    def _usable(self) -> list[Engine]:
        """Engines that may get requests: those that are listed, unless none of these is READY."""
        ready = [engine for engine in self._engines.values() if engine.is_ready]
        return [engine for engine in ready if engine.address in self._listed] or ready

    def _take_addresses(self, listed: frozenset[str]) -> None:
        """These engines are there, as far as anybody can tell without asking them.

        Raises:
            StartError: one of them cannot be connected to.
        """
        self._listed = listed
        for address in sorted(listed - self._engines.keys()):
            logger.info("engine listed address=%s", address)
            engine = self._engines[address] = Engine(address, self._connector, self, self.counts)
            self._chooser.add(engine)
            self.cache.add(engine)
        self._take_stock()

    def _take_stock(self) -> None:
        """Something is different: move the streams whose engines cannot go on, and tell of the state of all."""
        self._move_streams()
        self._place_waiting()
        state = self.status.state
        if state is EngineState.READY:
            self._wait_is_over.set()
        else:
            self._wait_is_over.clear()
        if state is not self._state:
            self._state = state
            self._on_state_change()

    def _move_streams(self) -> None:
        usable = self._usable()
        if not usable:
            return
        for engine in self._engines.values():
            if engine in usable or not engine.num_streams:
                continue
            goes_on = engine.is_ready or engine.status.state is EngineState.DRAINING
            streams = [stream for stream in engine.streams if not (goes_on and stream.is_running)]
            for stream in streams:
                if engine.has_lost_workers:
                    stream.note_death()
                engine.close(stream)
                self._take_back(stream)
                self._let_wait(stream)
            if streams:
                logger.info("streams leave their engine num_streams=%d address=%s", len(streams), engine.address)

    def _place_waiting(self) -> None:
        streams = self._waiting.all()
        if not streams or not self._usable():
            return
        for stream in streams:
            if self._place(stream):
                self._waiting.take(stream)
        num_placed = len(streams) - len(self._waiting)
        if num_placed:
            self.counts.num_recovered += num_placed
            logger.info("streams resubmitted num_streams=%d of=%d", num_placed, len(streams))

    async def _tend(self) -> None:
        while True:
            for stream in self._searches.overdue():
                self._place_or_wait(stream)
            self._move_streams()
            self._place_waiting()
            for stream, error in self._waiting.overdue():
                self._fail(stream, error)
            self._retire_unlisted()
            self._chooser.catch_up()
            await asyncio.sleep(_TENDING_PERIOD_S)

    def _retire_unlisted(self) -> None:
        """Part from engines that are listed no longer, once they have no streams and nobody needs them."""
        usable = self._usable()
        for address in self._engines.keys() - self._listed:
            engine = self._engines[address]
            if not engine.num_streams and engine not in usable:
                logger.info("engine retired address=%s", address)
                self._chooser.remove(engine)
                self.cache.remove(engine)
                engine.shut_down(EngineUnavailableError("the engine is gone"))
                del self._engines[address]
