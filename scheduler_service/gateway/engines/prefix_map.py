"""How much of a prompt does each engine have cached, as far as its cache events tell?

Every engine names its blocks by hashes with a secret of its own, so the same content has another name in each. Here a
block is known by its key: a hash of the key before it (of the cache salt, for a prompt's first block) and its tokens.
Which engines hold a key is a bit set, so that a prompt is looked up once for all engines.

Keys have 60 bits and come from Python's own keyed hash. Should two prefixes ever have one key, a request may go to an
engine that has less of it cached than was thought, and nothing else: engines compare by their own hashes.
"""

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pagewire.ipc.cache_events import BlockRemoved, BlockStored
from scheduler_service.gateway.engines.cache_watch import CacheNews

EXPECTED_FOR_S = 30.0
"""How long a prompt that was sent to an engine counts as cached there without the engine's word."""

_TOKEN_BYTES = 4
# Python keeps integers below this in 32 bytes, and 64-bit ones in 48.
_MASK = (1 << 60) - 1


@dataclass(slots=True)
class _Engine:
    """What one engine told. The bit of an engine is set in `holders` for the keys of `keys` and of `expected`, and for
    no key of both.

    An orphan is a block whose parent was never told, or was removed before: it has no key until the parent is told.

    bit: the engine's own, in every bit set.
    keys: of its cached blocks, by name.
    orphans: tokens by name, by the name of the parent.
    parents: of the orphans, by name.
    expected: keys that it is expected to have soon, and until when.
    """

    bit: int
    block_bytes: int = 0
    keys: dict[int, int] = field(default_factory=dict)
    orphans: dict[int, dict[int, bytes]] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    expected: dict[int, float] = field(default_factory=dict)


class PrefixMap:
    """Mirrors what engines have cached. Engines may have different block sizes.

    Args:
        expected_for_s: how long what `expect` was told counts as cached.
    """

    def __init__(self, expected_for_s: float = EXPECTED_FOR_S) -> None:
        self._expected_for_s = expected_for_s
        self._engines: dict[str, _Engine] = {}
        # Names by the number of the bit; freed bits are used again.
        self._names: list[str | None] = []
        self._holders: dict[int, int] = {}
        # Bit set of the engines with blocks of so many bytes.
        self._sizes: dict[int, int] = {}
        self._expectations: deque[tuple[float, str, list[int]]] = deque()

    def __len__(self) -> int:
        """How many different blocks are known, in whichever engine."""
        return len(self._holders)

    def take(self, engine: str, news: CacheNews) -> None:
        """An engine told what changed, or all that it has. What is expected of it stays, until it clears its cache."""
        known = self._engine(engine)
        if news.is_snapshot:
            self._forget_blocks(known)
        for event in news.events:
            if isinstance(event, BlockStored):
                self._store(known, event)
            elif isinstance(event, BlockRemoved):
                self._remove(known, _number(event.block_hash))
            else:
                self._forget_blocks(known)
                self._forget_expected(known)

    def expect(self, engine: str, token_ids: "array[int]", cache_salt: str, block_size: int, now_s: float) -> None:
        """A prompt was just sent there: its full blocks count as cached for a while, until events tell."""
        self._drop_overdue(now_s)
        known = self._engine(engine)
        self._set_block_bytes(known, block_size * _TOKEN_BYTES)
        until_s = now_s + self._expected_for_s
        content = token_ids.tobytes()
        keys = [key for key in _keys(content, cache_salt, known.block_bytes, len(content)) if self._lacks(known, key)]
        for key in keys:
            known.expected[key] = until_s
            self._holders[key] = self._holders.get(key, 0) | known.bit
        if keys:
            self._expectations.append((until_s, engine, keys))

    def forget(self, engine: str) -> None:
        """The engine is gone."""
        known = self._engines.pop(engine, None)
        if known is None:
            return
        self._forget_blocks(known)
        self._forget_expected(known)
        self._set_block_bytes(known, 0)
        self._names[known.bit.bit_length() - 1] = None

    def match(self, token_ids: "array[int]", cache_salt: str, now_s: float) -> dict[str, int]:
        """How many tokens of a prompt each engine has cached from its beginning; engines with none are absent.

        The last token never counts: an engine computes at least that one.
        """
        self._drop_overdue(now_s)
        content = token_ids.tobytes()
        found: dict[str, int] = {}
        for block_bytes, engines in self._sizes.items():
            self._match_blocks(found, content, cache_salt, block_bytes, engines)
        return found

    # ---- looking up -----------------------------------------------------------------------------------------------

    def _match_blocks(
        self, found: dict[str, int], content: bytes, cache_salt: str, block_bytes: int, engines: int
    ) -> None:
        """Add what those of the engines have that use this block size."""
        num_blocks, holders = 0, self._holders
        for key in _keys(content, cache_salt, block_bytes, len(content) - _TOKEN_BYTES):
            remaining = engines & holders.get(key, 0)
            if remaining != engines:
                self._note(found, engines ^ remaining, num_blocks * block_bytes // _TOKEN_BYTES)
                engines = remaining
            if not engines:
                return
            num_blocks += 1
        self._note(found, engines, num_blocks * block_bytes // _TOKEN_BYTES)

    def _note(self, found: dict[str, int], engines: int, num_tokens: int) -> None:
        while num_tokens and engines:
            bit = engines & -engines
            name = self._names[bit.bit_length() - 1]
            assert name is not None, "a forgotten engine holds blocks"
            found[name] = num_tokens
            engines ^= bit

    # ---- what engines tell ----------------------------------------------------------------------------------------

    def _engine(self, name: str) -> _Engine:
        engine = self._engines.get(name)
        if engine is None:
            if None not in self._names:
                self._names.append(None)
            index = self._names.index(None)
            self._names[index] = name
            engine = self._engines[name] = _Engine(1 << index)
        return engine

    def _set_block_bytes(self, engine: _Engine, block_bytes: int) -> None:
        """Have the engine be looked up with this block size; 0: with none."""
        if engine.block_bytes == block_bytes:
            return
        if engine.block_bytes:
            self._sizes[engine.block_bytes] &= ~engine.bit
            if not self._sizes[engine.block_bytes]:
                del self._sizes[engine.block_bytes]
        if block_bytes:
            self._sizes[block_bytes] = self._sizes.get(block_bytes, 0) | engine.bit
        engine.block_bytes = block_bytes

    def _store(self, engine: _Engine, event: BlockStored) -> None:
        name, token_ids = _number(event.block_hash), event.token_ids
        self._set_block_bytes(engine, len(token_ids))
        if not event.parent:
            self._adopt(engine, name, _key(_root(event.cache_salt), token_ids))
            return
        parent = _number(event.parent)
        parent_key = engine.keys.get(parent)
        if parent_key is not None:
            self._adopt(engine, name, _key(parent_key, token_ids))
        elif name not in engine.keys:
            engine.orphans.setdefault(parent, {})[name] = token_ids
            engine.parents[name] = parent

    def _adopt(self, engine: _Engine, name: int, key: int) -> None:
        """A block is cached, and its content is known now; so is that of the orphans after it."""
        adopted = [(name, key)]
        while adopted:
            name, key = adopted.pop()
            if name in engine.keys:
                continue
            self._leave_orphans(engine, name)
            engine.keys[name] = key
            engine.expected.pop(key, None)
            # One object for the engine's bit, not one a block.
            holders = self._holders.get(key)
            self._holders[key] = engine.bit if holders is None else holders | engine.bit
            for orphan, token_ids in engine.orphans.get(name, {}).items():
                adopted.append((orphan, _key(key, token_ids)))

    def _leave_orphans(self, engine: _Engine, name: int) -> None:
        parent = engine.parents.pop(name, None)
        if parent is not None:
            siblings = engine.orphans[parent]
            del siblings[name]
            if not siblings:
                del engine.orphans[parent]

    def _remove(self, engine: _Engine, name: int) -> None:
        key = engine.keys.pop(name, None)
        if key is None:
            self._leave_orphans(engine, name)
        else:
            self._let_go(engine, key)

    def _let_go(self, engine: _Engine, key: int) -> None:
        holders = self._holders.get(key, 0) & ~engine.bit
        if holders:
            self._holders[key] = holders
        else:
            self._holders.pop(key, None)

    def _forget_blocks(self, engine: _Engine) -> None:
        for key in engine.keys.values():
            self._let_go(engine, key)
        engine.keys.clear()
        engine.orphans.clear()
        engine.parents.clear()

    # ---- what engines are expected to have ------------------------------------------------------------------------

    def _lacks(self, engine: _Engine, key: int) -> bool:
        """Whether the engine has not told that it has this block."""
        return key in engine.expected or not self._holders.get(key, 0) & engine.bit

    def _forget_expected(self, engine: _Engine) -> None:
        for key in engine.expected:
            self._let_go(engine, key)
        engine.expected.clear()

    def _drop_overdue(self, now_s: float) -> None:
        while self._expectations and self._expectations[0][0] <= now_s:
            _, name, keys = self._expectations.popleft()
            engine = self._engines.get(name)
            if engine is None:
                continue
            for key in keys:
                # It may have been told meanwhile, or be expected again.
                if engine.expected.get(key, now_s + 1) <= now_s:
                    del engine.expected[key]
                    self._let_go(engine, key)


def _keys(content: bytes, cache_salt: str, block_bytes: int, max_bytes: int) -> Iterator[int]:
    """Keys of the full blocks of a prompt that end within its first so many bytes."""
    key = _root(cache_salt)
    for end in range(block_bytes, max_bytes + 1, block_bytes):
        key = _key(key, content[end - block_bytes : end])
        yield key


def _root(cache_salt: str) -> int:
    return hash(cache_salt) & _MASK


def _key(parent: int, token_ids: bytes) -> int:
    return hash((parent, token_ids)) & _MASK


def _number(name: bytes) -> int:
    """An engine's name of a block, which is itself a hash, in less memory."""
    return int.from_bytes(name, "little") & _MASK
