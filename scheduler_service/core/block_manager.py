"""Who holds which KV block: allocation, sharing and freeing."""

from collections import Counter
from collections.abc import Callable, Iterable

from scheduler_service.core.prefix_cache import PrefixCache


class BlockManager:
    """A pool of `num_blocks` blocks, each free, idle (cached, nobody's) or held by one or more sequences.

    allocate: free -> held, or idle -> (evicted) -> held
    share:    idle or held -> held once more
    free:     held once less; at zero -> idle if cached, else free

    Args:
        on_forget: told the hash of each block that is evicted or withdrawn from the prefix cache.
    """

    def __init__(self, num_blocks: int, on_forget: Callable[[bytes], None]) -> None:
        self.num_blocks = num_blocks
        self.cache = PrefixCache(on_forget)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + self.cache.num_idle

    def adopt(self, contents: Iterable[tuple[int, bytes]]) -> int:
        """Free blocks hold content with these hashes: they become idle, first named first evicted. How many are they?

        Left out are blocks that do not exist, and those whose content another block has.
        """
        free = set(self._free)
        for block, content_hash in contents:
            if block not in free:
                continue
            self.cache.insert(block, content_hash)
            if block in self.cache:
                self.cache.mark_idle(block)
                free.remove(block)
        num_adopted = len(self._free) - len(free)
        self._free = [block for block in self._free if block in free]
        return num_adopted

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks of undefined content; None if there are not as many."""
        if count > self.num_available:
            return None
        blocks = [self._free.pop() if self._free else self.cache.evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def num_idle_among(self, block_ids: list[int]) -> int:
        """How many of these blocks would leave the available ones if they were shared."""
        return sum(1 for block in block_ids if self._holders[block] == 0)

    def share(self, block_ids: list[int]) -> None:
        """Take cached blocks, held by others or idle."""
        for block in block_ids:
            if self._holders[block] == 0:
                self.cache.mark_used(block)
            self._holders[block] += 1

    def free(self, block_ids: list[int]) -> None:
        """Let go of a sequence's blocks. The deepest become idle first, so that they are evicted first."""
        for block in reversed(block_ids):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} freed twice"
            if self._holders[block] > 0:
                continue
            if block in self.cache:
                self.cache.mark_idle(block)
            else:
                self._free.append(block)

    def flush(self) -> int:
        """Share nothing any more that is cached now; how many blocks are they? Their holders keep them."""
        num_cached = len(self.cache)
        self._free += self.cache.clear()
        return num_cached

    def check_integrity(self, held: Iterable[list[int]]) -> None:
        """Assert that holders are exactly the given block tables and every other block is free or idle, once."""
        counts = Counter(block for blocks in held for block in blocks)
        assert all(self._holders[block] == counts[block] for block in range(self.num_blocks)), "holder counts are wrong"
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        for block in range(self.num_blocks):
            places = (self._holders[block] > 0) + (block in free) + self.cache.is_idle(block)
            assert places == 1, f"block {block} is in {places} places"
        self.cache.check_integrity()
