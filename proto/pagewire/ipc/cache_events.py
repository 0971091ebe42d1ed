"""Messages about what the prefix cache holds, between a gateway that wants to know and the scheduler.

A gateway that sends `WatchCache` gets `CacheEvents` at once, a snapshot of what is known to be cached, and from then on
one after each turn of the scheduler that changed it. Sent again, `WatchCache` brings another snapshot. `FlushCache` is
answered with `CacheFlushed`.

A block is named by the first `HASH_BYTES` of its content hash.
"""

import msgspec

HASH_BYTES = 8


class WatchCache(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Tell this gateway what is cached; with `wanted` unset, no longer."""

    wanted: bool


class FlushCache(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=8):
    """Forget all that is cached. `flush_id` is the gateway's own, for the answer."""

    flush_id: int


class BlockStored(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A block can be shared. `parent` is the block before it, empty for a prompt's first; `token_ids` are int32."""

    block_hash: bytes
    parent: bytes
    token_ids: bytes
    cache_salt: str


class BlockRemoved(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """A block can no longer be shared."""

    block_hash: bytes


class CacheCleared(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """No block can be shared any longer."""


CacheEvent = BlockStored | BlockRemoved | CacheCleared


class CacheEvents(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=17):
    """What changed, in order. A snapshot lists all that is known to be cached instead, parents first.

    `number` is one more than that of the message before it to the same gateway.
    """

    number: int
    is_snapshot: bool
    events: list[CacheEvent]


class CacheFlushed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=18):
    """Nothing that was cached before will be shared again; so many blocks were."""

    flush_id: int
    num_blocks: int
