"""Which full blocks can be shared: content hashes, the blocks that hold them, and the order of eviction."""

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Callable

HASH_BYTES = 16


class BlockHasher:
    """Chained 128-bit hashes of full blocks, keyed with a secret of this process.

    A block's hash covers every token up to its end and the cache salt, so equal hashes mean equal prefixes. BLAKE2b in
    keyed mode (RFC 7693) is a MAC: without the key nobody can make two prefixes collide.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._key = secrets.token_bytes(32)

    def extend(self, hashes: list[bytes], token_ids: "array[int]", cache_salt: str, num_blocks: int) -> None:
        """Append the hashes of further full blocks of `token_ids` until there are `num_blocks`."""
        size = self._block_size
        assert num_blocks * size <= len(token_ids), "hash of a block that is not full"
        parent = hashes[-1] if hashes else cache_salt.encode()
        for index in range(len(hashes), num_blocks):
            content = token_ids[index * size : (index + 1) * size].tobytes()
            parent = hashlib.blake2b(parent + content, digest_size=HASH_BYTES, key=self._key).digest()
            hashes.append(parent)


class PrefixCache:
    """Maps content hashes to blocks, and remembers which cached blocks nobody holds, oldest first.

    Args:
        on_forget: told the hash of each block that is evicted or withdrawn.
    """

    def __init__(self, on_forget: Callable[[bytes], None]) -> None:
        self._on_forget = on_forget
        self._block_of_hash: dict[bytes, int] = {}
        self._hash_of_block: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Cached blocks that no sequence holds: they can be evicted."""
        return len(self._idle)

    def match(self, hashes: list[bytes]) -> list[int]:
        """Blocks of the longest cached prefix. They are not taken."""
        blocks = []
        for content_hash in hashes:
            block = self._block_of_hash.get(content_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, block_id: int, content_hash: bytes) -> bool:
        """Offer a held, full block for sharing. False: a block with the same content is there already, and stays."""
        if content_hash in self._block_of_hash or block_id in self._hash_of_block:
            return False
        self._block_of_hash[content_hash] = block_id
        self._hash_of_block[block_id] = content_hash
        return True

    def withdraw(self, block_id: int) -> None:
        """Offer a held block no more; its holders keep it, and the last one frees it."""
        content_hash = self._hash_of_block.pop(block_id, None)
        if content_hash is not None:
            del self._block_of_hash[content_hash]
            self._on_forget(content_hash)

    def __len__(self) -> int:
        """How many blocks hold shareable content."""
        return len(self._hash_of_block)

    def __contains__(self, block_id: int) -> bool:
        """Whether the block holds shareable content."""
        return block_id in self._hash_of_block

    def is_idle(self, block_id: int) -> bool:
        """Whether the block is cached and nobody holds it."""
        return block_id in self._idle

    def mark_idle(self, block_id: int) -> None:
        """The last holder let go: the block becomes the last to be evicted."""
        self._idle[block_id] = None

    def mark_used(self, block_id: int) -> None:
        """A sequence takes an idle block."""
        del self._idle[block_id]

    def evict(self) -> int:
        """Forget the least recently used idle block and return it for new content."""
        block_id, _ = self._idle.popitem(last=False)
        content_hash = self._hash_of_block.pop(block_id)
        del self._block_of_hash[content_hash]
        self._on_forget(content_hash)
        return block_id

    def clear(self) -> list[int]:
        """Forget all blocks, without a word about each; returns those that were idle."""
        idle = list(self._idle)
        self._block_of_hash.clear()
        self._hash_of_block.clear()
        self._idle.clear()
        return idle

    def check_integrity(self) -> None:
        """Assert that both maps mirror each other and idle blocks are cached."""
        assert len(self._block_of_hash) == len(self._hash_of_block)
        assert all(self._block_of_hash[h] == block for block, h in self._hash_of_block.items())
        assert all(block in self._hash_of_block for block in self._idle)
