"""What does the prefix cache hold, for those who want to know? Kept while somebody watches, and free while nobody does.

The cache itself knows hashes alone. The journal has the tokens as well, of the blocks that were stored, or shared,
since somebody began to watch: what was cached before is told of when a sequence next shares it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pagewire.ipc.cache_events import (
    HASH_BYTES,
    BlockRemoved,
    BlockStored,
    CacheCleared,
    CacheEvent,
    CacheEvents,
)
from scheduler_service.core.sequence import Sequence


@dataclass(slots=True)
class _Watcher:
    """A gateway that watches."""

    num_messages: int = 0
    lacks_snapshot: bool = True


class CacheJournal:
    """Notes changes of the prefix cache, and what to tell each gateway that watches.

    Attributes:
        is_kept: whether somebody watches. Only then is there anything to note.
    """

    def __init__(self, block_size: int) -> None:
        self.is_kept = False
        self._block_size = block_size
        self._stored: dict[bytes, BlockStored] = {}
        self._news: list[CacheEvent] = []
        self._watchers: dict[bytes, _Watcher] = {}

    def watch(self, gateway: bytes) -> None:
        """Tell this gateway everything from now on, after a snapshot; one that watches already gets another one."""
        self._watchers.setdefault(gateway, _Watcher()).lacks_snapshot = True
        self.is_kept = True

    def unwatch(self, gateway: bytes) -> None:
        """The gateway is gone or wants no more."""
        self._watchers.pop(gateway, None)
        if not self._watchers:
            self.is_kept = False
            self._stored.clear()
            self._news.clear()

    def note_stored(self, sequence: Sequence, num_blocks: int) -> None:
        """The first blocks of a sequence are cached, by whichever sequence; those noted before are no news."""
        for index in range(num_blocks):
            if sequence.block_hashes[index] not in self._stored:
                self._note_block(sequence, index)

    def note_block(self, sequence: Sequence, index: int) -> None:
        """A block of a sequence was cached."""
        if self.is_kept:
            self._note_block(sequence, index)

    def note_removed(self, content_hash: bytes) -> None:
        """A block is no longer cached."""
        if self.is_kept and self._stored.pop(content_hash, None) is not None:
            self._news.append(BlockRemoved(_name(content_hash)))

    def note_cleared(self) -> None:
        """Nothing is cached any longer."""
        if self.is_kept:
            self._stored.clear()
            self._news = [CacheCleared()]

    def take_messages(self) -> list[tuple[bytes, CacheEvents]]:
        """What to tell each gateway now."""
        news, self._news = self._news, []
        messages: list[tuple[bytes, CacheEvents]] = []
        for gateway, watcher in self._watchers.items():
            if news and watcher.num_messages:
                watcher.num_messages += 1
                messages.append((gateway, CacheEvents(watcher.num_messages, False, news)))
            if watcher.lacks_snapshot:
                watcher.lacks_snapshot = False
                watcher.num_messages += 1
                messages.append((gateway, CacheEvents(watcher.num_messages, True, list(self._parents_first()))))
        return messages

    def _note_block(self, sequence: Sequence, index: int) -> None:
        size, hashes = self._block_size, sequence.block_hashes
        stored = BlockStored(
            block_hash=_name(hashes[index]),
            parent=_name(hashes[index - 1]) if index else b"",
            token_ids=sequence.token_ids[index * size : (index + 1) * size].tobytes(),
            cache_salt=sequence.cache_salt,
        )
        self._stored[hashes[index]] = stored
        self._news.append(stored)

    def _parents_first(self) -> Iterator[BlockStored]:
        """All blocks. They were noted in this order, but for a parent that was evicted and stored again."""
        by_name: dict[bytes, BlockStored] = {}
        told = {b""}
        for stored in self._stored.values():
            if stored.block_hash in told:
                continue
            if stored.parent in told:
                told.add(stored.block_hash)
                yield stored
                continue
            by_name = by_name or {each.block_hash: each for each in self._stored.values()}
            chain: list[BlockStored] = []
            link: BlockStored | None = stored
            while link is not None and link.block_hash not in told:
                told.add(link.block_hash)
                chain.append(link)
                link = by_name.get(link.parent)
            yield from reversed(chain)


def _name(content_hash: bytes) -> bytes:
    return content_hash[:HASH_BYTES]
