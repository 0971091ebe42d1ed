"""The worker ranks of this scheduler: from their greeting to the moment all of them can run step batches.

    hello (all ranks) -> configured -> loaded (all ranks, least num_blocks wins) -> cache allocated -> READY (all ranks)

A rank that greets with a new incarnation was restarted: the whole group starts over, since the ranks' KV caches only
make sense together. Several ranks also compute together, in a group that every process joins once. So the group is
given a name, which all ranks carry:

    all ranks say the same name     they go on together: this scheduler was restarted, or they are to start over
    all ranks say none              they are new: a new name is drawn, and they meet, once each has greeted again since
                                    the last one came: who waits for one that died meanwhile hears nothing
    anything else                   who is in a group has lost a member: it is told of a new one, which makes it exit

So it is if some of a group greet and others do not: these wait for them in a step, or while they load, as the scheduler
before this one told some of it and died before it told the others.
"""

import enum
import logging
import time
from dataclasses import dataclass

import msgspec

from pagewire.ipc.codec import new_incarnation
from pagewire.ipc.requests import ModelInfo
from pagewire.ipc.steps import (
    AllocateCache,
    EngineConfig,
    JoinGroup,
    LeftSequence,
    StepBatch,
    WorkerFailed,
    WorkerHello,
    WorkerLoaded,
    WorkerMessage,
    WorkerProgress,
    WorkerReady,
)
from scheduler_service.core.config import SchedulerConfig
from scheduler_service.core.sockets import PeerGoneError, Server

logger = logging.getLogger(__name__)

# Ranks end each step at the same time, and who has ended it greets within a second.
_MEMBERS_PATIENCE_S = 5.0


class Stage(enum.IntEnum):
    """How far a rank is."""

    GREETED = 0
    CONFIGURED = 1
    LOADED = 2
    ALLOCATING = 3
    READY = 4


@dataclass(slots=True)
class _Rank:
    routing_id: bytes
    incarnation: bytes
    group: bytes
    stage: Stage = Stage.GREETED
    progress: WorkerProgress | None = None
    loaded: WorkerLoaded | None = None
    left: frozenset[LeftSequence] = frozenset()


class WorkerGroup:
    """Tracks the ranks and speaks to all of them at once. `num_blocks` and `model` are set once it is ready."""

    def __init__(self, server: Server[WorkerMessage], config: SchedulerConfig) -> None:
        self._server = server
        self._config = config
        self._ranks: dict[int, _Rank] = {}
        # Those that have not greeted since the last one came.
        self._unheard: set[int] = set()
        self._last_came_s = 0.0
        self.num_blocks = 0
        self.model: ModelInfo | None = None
        self.failure = ""

    @property
    def is_ready(self) -> bool:
        """Whether every rank can run step batches."""
        return len(self._ranks) == self._config.tensor_parallel_size and all(
            rank.stage is Stage.READY for rank in self._ranks.values()
        )

    @property
    def progress(self) -> WorkerProgress:
        """What the slowest loading rank is doing."""
        reports = [rank.progress for rank in self._ranks.values() if rank.progress is not None]
        missing = self._config.tensor_parallel_size - len(self._ranks)
        if missing or not reports:
            return WorkerProgress(0, "waiting for workers", len(self._ranks), self._config.tensor_parallel_size)
        return min(reports, key=lambda report: report.done / max(report.total, 1))

    @property
    def left(self) -> frozenset[LeftSequence]:
        """What every rank holds of an earlier scheduler's sequences, when the group became ready."""
        return frozenset.intersection(*(rank.left for rank in self._ranks.values()))

    def forget_left(self) -> None:
        """It is of no more use."""
        for rank in self._ranks.values():
            rank.left = frozenset()

    def is_current(self, incarnation: bytes, rank: int) -> bool:
        """Whether a message comes from the process that now is this rank."""
        return rank in self._ranks and self._ranks[rank].incarnation == incarnation

    def hello(self, routing_id: bytes, incarnation: bytes, message: WorkerHello) -> None:
        """A rank greets: if it is new, the group starts, or starts over, once all ranks are there."""
        size = self._config.tensor_parallel_size
        if message.world_size != size or not 0 <= message.rank < size:
            logger.error("worker refused rank=%d of=%d expected=%d", message.rank, message.world_size, size)
            return
        known = self._ranks.get(message.rank)
        if known is not None and known.incarnation == incarnation:
            is_reconnected = known.routing_id != routing_id
            known.routing_id = routing_id
            # A message of its start may be lost with the connection.
            if message.rank not in self._unheard and (not is_reconnected or known.stage is Stage.READY):
                self._dismiss_members_if_others_stay_away()
                return
            self._unheard.discard(message.rank)
        else:
            logger.info("worker connected rank=%d pid=%d incarnation=%s", message.rank, message.pid, incarnation.hex())
            self._ranks[message.rank] = _Rank(routing_id, incarnation, message.group)
            self._unheard = self._ranks.keys() - {message.rank}
            self._last_came_s = time.monotonic()
            self.failure = ""
        self._start_when_all_greeted()

    def report(self, message: WorkerProgress | WorkerLoaded | WorkerReady | WorkerFailed) -> None:
        """A rank says how far it is."""
        rank = self._ranks[message.rank]
        if isinstance(message, WorkerProgress):
            rank.progress = message
        elif isinstance(message, WorkerFailed):
            # The first one is the cause; other ranks fail for want of it.
            self.failure = self.failure or f"worker rank {message.rank}: {message.detail}"
            # It takes no more steps.
            rank.stage = Stage.GREETED
            logger.error("worker failed rank=%d detail=%s", message.rank, message.detail)
        elif isinstance(message, WorkerLoaded):
            rank.stage, rank.loaded = Stage.LOADED, message
            self._allocate_when_all_loaded()
        else:
            rank.stage, rank.left = Stage.READY, frozenset(message.left)
            logger.info("worker ready rank=%d num_blocks=%d", message.rank, self.num_blocks)

    def send_step(self, batch: StepBatch) -> bool:
        """Send a step to every rank; False if one is gone, whose successor will greet."""
        num_reached = sum(self._send(rank, batch) for rank in list(self._ranks))
        return num_reached == len(self._ranks)

    def _start_when_all_greeted(self) -> None:
        if len(self._ranks) < self._config.tensor_parallel_size:
            return
        names = {rank.group for rank in self._ranks.values()}
        if len(names) > 1:
            self._dismiss_members("another rank was replaced")
            return
        name = names.pop()
        if not name and self._unheard:
            return
        name = name or new_incarnation()
        self._unheard.clear()
        for number, rank in self._ranks.items():
            rank.stage = Stage.CONFIGURED
            self._configure(number, name)

    def _dismiss_members_if_others_stay_away(self) -> None:
        is_complete = len(self._ranks) == self._config.tensor_parallel_size
        if not is_complete and time.monotonic() - self._last_came_s > _MEMBERS_PATIENCE_S:
            self._dismiss_members("others of its group do not greet")

    def _dismiss_members(self, reason: str) -> None:
        """Have those exit that are in a group which cannot go on; their successors will greet."""
        for number in [number for number, rank in self._ranks.items() if rank.group]:
            logger.warning("worker dismissed rank=%d reason=%s", number, reason)
            self._send(number, JoinGroup(new_incarnation()))
            del self._ranks[number]
            self._unheard.discard(number)

    def _configure(self, number: int, group: bytes) -> None:
        config = self._config
        if config.tensor_parallel_size > 1:
            self._ranks[number].group = group
            self._send(number, JoinGroup(group))
        self._send(
            number,
            EngineConfig(
                config.block_size,
                config.max_num_seqs,
                config.max_num_batched_tokens,
                config.max_model_len,
                config.num_blocks,
            ),
        )

    def _allocate_when_all_loaded(self) -> None:
        loaded = [rank.loaded for rank in self._ranks.values() if rank.loaded is not None]
        if len(loaded) < self._config.tensor_parallel_size:
            return
        self.num_blocks = min(message.num_blocks for message in loaded)
        self.model = loaded[0].model
        for number, rank in self._ranks.items():
            rank.stage = Stage.ALLOCATING
            self._send(number, AllocateCache(self.num_blocks))

    def _send(self, rank: int, message: msgspec.Struct) -> bool:
        target = self._ranks[rank]
        try:
            self._server.send(target.routing_id, message, target.incarnation)
        except PeerGoneError as error:
            logger.warning("worker unreachable rank=%d error=%s", rank, error)
            return False
        return True
