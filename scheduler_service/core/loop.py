"""The scheduler process's one loop: receive, update, schedule, send."""

import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from pagewire.ipc.cache_events import CacheFlushed, FlushCache, WatchCache
from pagewire.ipc.chrome_trace import NO_TRACE, Recorder
from pagewire.ipc.codec import Envelope, new_incarnation
from pagewire.ipc.curve import GATEWAY, WORKER
from pagewire.ipc.metrics import Family
from pagewire.ipc.requests import (
    Abort,
    EngineState,
    EngineStatus,
    GatewayMessage,
    GetMetrics,
    Goodbye,
    Hello,
    Limits,
    Load,
    Locate,
    Located,
    MetricValues,
    Rejected,
    RejectReason,
    SchedulerMessage,
    Submit,
)
from pagewire.ipc.steps import StepOutput, WorkerHello, WorkerMessage
from pagewire.ipc.supervision import NO_HEART, Heart, ProcessState
from scheduler_service.core.admission import Refusal, check
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.curve_gate import CurveGate
from scheduler_service.core.drain import Drain
from scheduler_service.core.gateways import Gateways
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.metrics.report import EngineReport
from scheduler_service.core.metrics.times import Outcome
from scheduler_service.core.orphans import check_resume
from scheduler_service.core.scheduler import Scheduler
from scheduler_service.core.sockets import Server
from scheduler_service.core.waker import Waker
from scheduler_service.core.worker_group import WorkerGroup

if TYPE_CHECKING:
    from scheduler_service.core.metrics.sequence_spans import SequenceSpans

logger = logging.getLogger(__name__)

# Gateways that route by loads older than a second do so badly.
_STATUS_PERIOD_S = 0.3
_STARTING_STATUS_PERIOD_S = 0.1
_DEADLINE_PERIOD_S = 0.02
# For the last words to gateways, once all sequences have had theirs.
_FAREWELL_S = 1.0


class SchedulerLoop:
    """Connects a Scheduler to its sockets. `stop` and `drain` may be called from a signal handler.

    Args:
        recorder: told what each turn and each step takes.
        heart: told of each turn and each step.
        curve_keys: directory with the keys for addresses that are reached over a network.
        spans: told of sequences that are traced.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        request_address: str,
        worker_address: str,
        recorder: Recorder = NO_TRACE,
        heart: Heart = NO_HEART,
        curve_keys: Path | None = None,
        spans: "SequenceSpans | None" = None,
    ) -> None:
        self._config = config
        self._spans = spans
        self._recorder = recorder
        self._heart = heart
        self._incarnation = new_incarnation()
        heart.incarnation = self._incarnation.hex()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = CurveGate(self._context, curve_keys) if curve_keys is not None else None
        requests: Server[GatewayMessage] = Server(
            self._context, request_address, GatewayMessage, self._incarnation, GATEWAY, curve_keys
        )
        workers: Server[WorkerMessage] = Server(
            self._context, worker_address, WorkerMessage, self._incarnation, WORKER, curve_keys
        )
        self._requests, self._workers = requests, workers
        self._gateways = Gateways(requests)
        self._group = WorkerGroup(workers, config)
        self._scheduler: Scheduler | None = None
        self._limits: Limits | None = None
        self._state = EngineState.STARTING
        self._next_status_s = 0.0
        self._next_expiry_s = 0.0
        self._refusals: Counter[RejectReason] = Counter()
        self._stopping = False
        self._drain = Drain(config.drain_timeout_s)
        self._poller = zmq.Poller()
        self._waker = Waker()

    @property
    def addresses(self) -> tuple[str, str]:
        """Addresses that the request and the worker socket are bound to."""
        return self._requests.address, self._workers.address

    def stop(self) -> None:
        """Leave `run` at once."""
        self._stopping = True
        self._waker.wake()

    def drain(self) -> None:
        """Let sequences end for a while, and none begin, then leave `run`; told twice, or without the time, at once."""
        if self._drain.begin():
            self._waker.wake()
        else:
            self.stop()

    def run(self) -> None:
        """Serve until `stop`, or the end of `drain`."""
        logger.info("scheduler started incarnation=%s", self._incarnation.hex())
        poller = self._poller
        poller.register(self._requests.socket, zmq.POLLIN)
        poller.register(self._workers.socket, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.socket, zmq.POLLIN)
        while not self._stopping:
            poller.poll(self._poll_timeout_ms())
            self.turn()
        self._requests.close(_FAREWELL_S if self._drain.is_under_way else 0.0)
        self._workers.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        self._recorder.close()
        if self._spans is not None:
            self._spans.close()

    def turn(self) -> None:
        """One turn: take what arrived, give the workers their next step first, then tell the gateways."""
        if self._gate is not None:
            self._gate.answer()
        start = self._recorder.now()
        for routing_id, message in self._workers.receive():
            self._handle_worker(routing_id, message)
        for routing_id, request in self._requests.receive():
            self._handle_request(routing_id, request)
        self._recorder.add("receive", start)
        now_s = time.time()
        if self._scheduler is not None:
            if now_s >= self._next_expiry_s:
                self._next_expiry_s = now_s + _DEADLINE_PERIOD_S
                self._scheduler.expire(now_s)
            self._schedule_steps(self._scheduler)
            start = self._recorder.now()
            self._forget(self._gateways.deliver(self._scheduler.take_outputs()))
            if self._scheduler.journal.is_kept:
                self._forget(self._gateways.deliver(self._scheduler.journal.take_messages()))
            self._recorder.add("deliver", start)
        if self._drain.is_under_way:
            self._follow_drain()
        if now_s >= self._next_status_s:
            self._publish_status(now_s)
        self._heart.note(self._process_state)

    def metrics(self) -> tuple[dict[str, str], list[Family]]:
        """Labels and values of the engine's metrics now. May be called in any thread."""
        num_dropped = self._requests.num_dropped + self._workers.num_dropped
        report = EngineReport(self._state, self._scheduler, self._refusals, num_dropped)
        return {"model_name": self._config.model_name, "engine": "0"}, report.families()

    # ---- requests -------------------------------------------------------------------------------------------------

    def _handle_request(self, routing_id: bytes, envelope: Envelope[GatewayMessage]) -> None:
        gateway, message = envelope.sender, envelope.message
        if isinstance(message, Hello):
            self._gateways.greet(gateway, routing_id, message)
            self._tell(gateway, self._status())
        elif gateway not in self._gateways:
            logger.warning("message from a gateway that did not greet dropped")
        elif isinstance(message, Goodbye):
            self._gateways.part(gateway)
            if self._scheduler is not None:
                self._scheduler.journal.unwatch(gateway)
                self._scheduler.abort_gateway(gateway)
        elif isinstance(message, GetMetrics):
            self._tell(gateway, MetricValues(message.number, *self.metrics()))
        elif isinstance(message, Submit):
            self._submit(gateway, message)
        elif isinstance(message, Abort) and self._scheduler is not None:
            for stream_id in message.stream_ids:
                outcome = Outcome.STOP if stream_id in message.complete_ids else Outcome.CANCELLED
                self._scheduler.abort(gateway, stream_id, outcome)
        elif isinstance(message, Locate):
            is_here = self._scheduler is not None and self._scheduler.knows(message.request_id)
            self._tell(gateway, Located(message.number, is_here))
        elif isinstance(message, WatchCache | FlushCache) and self._scheduler is not None:
            self._handle_cache_request(self._scheduler, gateway, message)

    def _handle_cache_request(self, scheduler: Scheduler, gateway: bytes, message: WatchCache | FlushCache) -> None:
        if isinstance(message, FlushCache):
            num_blocks = scheduler.flush_cache()
            logger.info("cache flushed num_blocks=%d", num_blocks)
            self._tell(gateway, CacheFlushed(message.flush_id, num_blocks))
        elif message.wanted:
            scheduler.watch_cache(gateway)
        else:
            scheduler.journal.unwatch(gateway)

    def _submit(self, gateway: bytes, submit: Submit) -> None:
        refusal = self._admit(gateway, submit)
        if refusal is not None:
            self._refusals[refusal.reason] += 1
            logger.info("request refused request_id=%s reason=%s", submit.request_id, refusal.message)
            rejected = Rejected(submit.stream_id, refusal.reason, refusal.field, refusal.message, refusal.retry_after_s)
            self._tell(gateway, rejected)

    def _admit(self, gateway: bytes, submit: Submit) -> Refusal | None:
        """Queue the request, or go on with its sequence, or say why not."""
        if self._scheduler is None or self._limits is None or self._group.model is None:
            return Refusal(RejectReason.UNAVAILABLE, "", "the engine is still starting")
        if self._scheduler.has(gateway, submit.stream_id):
            return Refusal(RejectReason.INVALID, "stream_id", f"{submit.stream_id} is already in use")
        max_total_tokens = check(submit, self._limits, self._group.model)
        if isinstance(max_total_tokens, Refusal):
            return max_total_tokens
        running = self._scheduler.find(submit) if submit.resumes else None
        if running is None:
            refusal = self._drain.refuse(submit) or self._scheduler.refuse_for_room(submit)
            if refusal is None:
                self._scheduler.add(gateway, submit, max_total_tokens)
            return refusal
        refusal = check_resume(running, submit, max_total_tokens)
        if refusal is None:
            logger.info("request resumed request_id=%s num_tokens=%d", submit.request_id, len(running.token_ids))
            self._scheduler.attach(running, gateway, submit)
        return refusal

    def _tell(self, gateway: bytes, message: SchedulerMessage) -> None:
        if not self._gateways.send(gateway, message):
            self._forget([gateway])

    def _forget(self, gateways: list[bytes]) -> None:
        """Gateways are gone: what they asked for waits a while for callers who resume it."""
        if self._scheduler is not None:
            for gateway in gateways:
                self._scheduler.journal.unwatch(gateway)
                self._scheduler.orphan_gateway(gateway, time.time())

    # ---- workers --------------------------------------------------------------------------------------------------

    def _handle_worker(self, routing_id: bytes, envelope: Envelope[WorkerMessage]) -> None:
        message = envelope.message
        if isinstance(message, WorkerHello):
            self._group.hello(routing_id, envelope.sender, message)
        elif isinstance(message, StepOutput):
            self._take_output(envelope.sender, message)
        elif self._group.is_current(envelope.sender, message.rank):
            self._group.report(message)
        self._follow_group()

    def _take_output(self, sender: bytes, output: StepOutput) -> None:
        if self._scheduler is None or not self._group.is_ready or not self._group.is_current(sender, 0):
            return
        start = self._recorder.now()
        try:
            self._scheduler.update(output)
            self._heart.note_step()
        except ValueError as error:
            logger.error("step output dropped error=%s", error)
        self._recorder.add("update", start, output.step_id)

    def _follow_group(self) -> None:
        """Change state with the workers: create the scheduler when they are first ready, reset it when they return."""
        if self._drain.is_under_way:
            return
        if self._group.is_ready and self._state is not EngineState.READY:
            self._become_ready()
        elif self._group.failure and self._state is not EngineState.UNAVAILABLE:
            self._change_state(EngineState.UNAVAILABLE)
        elif not self._group.is_ready and not self._group.failure and self._state is not EngineState.STARTING:
            self._change_state(EngineState.STARTING)

    def _become_ready(self) -> None:
        model, config = self._group.model, self._config
        assert model is not None
        if self._scheduler is None:
            longest = config.max_model_len or model.max_model_len
            metrics = EngineMetrics(config.max_num_seqs, longest, self._spans)
            self._scheduler = Scheduler(config, self._group.num_blocks, frozenset(model.eos_token_ids), metrics)
            self._scheduler.adopt(self._group.left)
            self._group.forget_left()
        else:
            self._scheduler.reset(self._group.num_blocks)
        self._limits = Limits(
            model.max_model_len,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.block_size,
            self._group.num_blocks,
            config.max_waiting_requests,
            config.max_waiting_tokens,
        )
        self._change_state(EngineState.READY)

    def _change_state(self, state: EngineState) -> None:
        logger.info("engine state=%s detail=%s", state.name.lower(), self._detail)
        self._state = state
        self._next_status_s = 0.0

    # ---- the end --------------------------------------------------------------------------------------------------

    def _follow_drain(self) -> None:
        """Tell everybody that it has begun, and stop once it is over."""
        lost_workers = self._workers.watch_for_losses()
        if self._state is not EngineState.DRAINING:
            self._poller.register(lost_workers, zmq.POLLIN)
            self._waker.rest()
            self._change_state(EngineState.DRAINING)
        scheduler = self._scheduler
        num_unfinished = scheduler.num_unfinished if scheduler is not None else 0
        has_workers = self._group.is_ready and not lost_workers.poll(0)
        why = self._drain.why_over(num_unfinished, has_workers=has_workers)
        if why:
            logger.info("scheduler stops reason=%s", why)
            self._stopping = True

    # ---- steps and status -----------------------------------------------------------------------------------------

    def _schedule_steps(self, scheduler: Scheduler) -> None:
        while self._group.is_ready and scheduler.can_schedule:
            start = self._recorder.now()
            batch = scheduler.schedule()
            if batch is None:
                return
            self._recorder.add("schedule", start, batch.step_id)
            start = self._recorder.now()
            if not self._group.send_step(batch):
                scheduler.note_unsent(batch.step_id)
            self._recorder.add("send", start, batch.step_id)

    def _publish_status(self, now_s: float) -> None:
        self._next_status_s = now_s + self._status_period_s
        self._forget(self._gateways.broadcast(self._status()))

    def _status(self) -> EngineStatus:
        progress = self._group.progress
        return EngineStatus(
            state=self._state,
            model=self._group.model,
            limits=self._limits,
            load=self._scheduler.load if self._scheduler is not None else Load(0, 0, 0),
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            detail=self._detail,
            model_name=self._config.model_name,
        )

    @property
    def _detail(self) -> str:
        return self._drain.describe() or self._group.failure

    @property
    def _process_state(self) -> ProcessState:
        if self._drain.is_under_way:
            return ProcessState.DRAINING
        is_busy = self._scheduler is not None and self._scheduler.has_sequences
        return ProcessState.BUSY if is_busy else ProcessState.IDLE

    @property
    def _status_period_s(self) -> float:
        return _STARTING_STATUS_PERIOD_S if self._state is EngineState.STARTING else _STATUS_PERIOD_S

    def _poll_timeout_ms(self) -> int:
        busy = self._scheduler is not None and self._scheduler.has_sequences
        timeout_s = min(max(0.0, self._next_status_s - time.time()), self._drain.remaining_s())
        return math.ceil(1000 * (min(timeout_s, _DEADLINE_PERIOD_S) if busy else timeout_s))
