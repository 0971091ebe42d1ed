"""How does news of the prefix cache become KV events of vLLM's protocol?

Every stream begins with a cleared cache and all that it holds, so a caller who comes back needs no events of the past:
numbers go on after the one that it names.
"""

import time
from collections.abc import Iterable, Iterator

from smg_grpc_proto.generated import common_pb2

from pagewire.ipc.cache_events import BlockRemoved, BlockStored, CacheCleared, CacheEvent
from scheduler_service.gateway.engines.cache_watch import CacheNews

_MAX_BLOCKS_PER_BATCH = 1024
# Of batches: a caller may name any as its last one.
_NUMBER_RANGE = 2**64
_DEVICE = common_pb2.KV_CACHE_TIER_DEVICE


class KvEventWriter:
    """Writes the batches of one stream.

    Args:
        last_number: the number of the last batch that the caller has.
    """

    def __init__(self, last_number: int) -> None:
        self._last_number = last_number
        self._num_events = 0

    def batches(self, news: CacheNews) -> Iterator[common_pb2.KvEventBatch]:
        """One message after another."""
        events: list[common_pb2.KvCacheEvent] = []
        if news.is_snapshot:
            self._add(events, cleared=common_pb2.KvCacheCleared())
        num_blocks = 0
        for event in news.events:
            if num_blocks == _MAX_BLOCKS_PER_BATCH:
                yield self._batch(events)
                events, num_blocks = [], 0
            self._take(events, event)
            num_blocks += 1
        if events:
            yield self._batch(events)

    def _take(self, events: list[common_pb2.KvCacheEvent], event: CacheEvent) -> None:
        """Append an event, or lengthen the last one with it."""
        last = events[-1] if events else None
        match event:
            case BlockStored():
                if last is None or not _continues(last, event):
                    last = self._add(events, stored=_stored(event))
                last.stored.blocks.append(_block(event))
            case BlockRemoved():
                if last is None or not last.HasField("removed"):
                    last = self._add(events, removed=common_pb2.KvBlocksRemoved(tier=_DEVICE))
                last.removed.block_hashes.append(_signed(event.block_hash))
            case CacheCleared():
                self._add(events, cleared=common_pb2.KvCacheCleared())

    def _add(self, events: list[common_pb2.KvCacheEvent], **data: object) -> common_pb2.KvCacheEvent:
        self._num_events += 1
        events.append(common_pb2.KvCacheEvent(event_id=self._num_events, **data))
        return events[-1]

    def _batch(self, events: Iterable[common_pb2.KvCacheEvent]) -> common_pb2.KvEventBatch:
        self._last_number = (self._last_number + 1) % _NUMBER_RANGE
        return common_pb2.KvEventBatch(sequence_number=self._last_number, timestamp=time.time(), events=events)


def _continues(last: common_pb2.KvCacheEvent, event: BlockStored) -> bool:
    """Whether the block follows the last one of this event."""
    if not last.HasField("stored") or not event.parent or last.stored.cache_salt != event.cache_salt:
        return False
    hash_before: int = last.stored.blocks[-1].block_hash
    return hash_before == _signed(event.parent)


def _stored(event: BlockStored) -> common_pb2.KvBlocksStored:
    return common_pb2.KvBlocksStored(
        parent_block_hash=_signed(event.parent) if event.parent else None,
        tier=_DEVICE,
        cache_salt=event.cache_salt or None,
    )


def _block(event: BlockStored) -> common_pb2.KvBlock:
    token_ids = memoryview(event.token_ids).cast("i")
    return common_pb2.KvBlock(block_hash=_signed(event.block_hash), token_ids=token_ids, block_size=len(token_ids))


def _signed(name: bytes) -> int:
    return int.from_bytes(name, "little", signed=True)
