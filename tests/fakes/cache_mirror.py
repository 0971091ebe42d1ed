"""What a watcher of the prefix cache knows: the blocks that it was told of."""

from array import array

from pagewire.ipc.cache_events import HASH_BYTES, BlockRemoved, BlockStored, CacheCleared, CacheEvents
from scheduler_service.core.scheduler import Scheduler


def cached_names(scheduler: Scheduler) -> set[bytes]:
    """What the cache of a scheduler really holds."""
    cache = scheduler._running.blocks.cache
    return {content_hash[:HASH_BYTES] for content_hash in cache._block_of_hash}


class CacheMirror:
    """Applies messages in order, and checks that they are in order."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, BlockStored] = {}
        self.num_messages = 0
        self.is_told = False

    def take(self, message: CacheEvents) -> None:
        """Apply one message."""
        self.num_messages += 1
        assert message.number == self.num_messages
        assert message.is_snapshot or self.is_told, "events without anything to apply them to"
        if message.is_snapshot:
            before, self.blocks = self.blocks, {}
            self._apply(message)
            assert not self.is_told or before == self.blocks, "the events before did not lead to this snapshot"
            for stored in self.blocks.values():
                assert self._is_after_parent(stored)
            self.is_told = True
        else:
            self._apply(message)

    def prefixes(self) -> set[tuple[str, tuple[int, ...]]]:
        """Salt and all tokens up to the end of each block whose parents are all there."""
        return {prefix for stored in self.blocks.values() if (prefix := self._prefix(stored)) is not None}

    def _apply(self, message: CacheEvents) -> None:
        for event in message.events:
            match event:
                case BlockStored():
                    assert event.block_hash not in self.blocks, "a block was stored twice"
                    self.blocks[event.block_hash] = event
                case BlockRemoved():
                    del self.blocks[event.block_hash]
                case CacheCleared():
                    self.blocks.clear()

    def _is_after_parent(self, stored: BlockStored) -> bool:
        names = list(self.blocks)
        return stored.parent not in self.blocks or names.index(stored.parent) < names.index(stored.block_hash)

    def _prefix(self, stored: BlockStored) -> tuple[str, tuple[int, ...]] | None:
        token_ids = array("i", stored.token_ids)
        while stored.parent:
            parent = self.blocks.get(stored.parent)
            if parent is None:
                return None
            stored = parent
            token_ids = array("i", stored.token_ids) + token_ids
        return stored.cache_salt, tuple(token_ids)
