"""Does the gateway know how much of a prompt each engine has cached, from what the engines tell and in any order?"""

import hashlib
from array import array
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from pagewire.ipc.cache_events import HASH_BYTES, BlockRemoved, BlockStored, CacheCleared, CacheEvent
from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.engines.prefix_map import EXPECTED_FOR_S, PrefixMap
from tests.unit.core.harness import Harness

Prefix = tuple[str, tuple[int, ...]]
"""A block, known by its salt and all tokens up to its end."""

BLOCK_SIZES = {"a": 2, "b": 2, "c": 3}
WATCHER = b"watcher1"


def name_of(engine: str, prefix: Prefix) -> bytes:
    """What an engine calls a block: each has its own secret."""
    return hashlib.sha256(repr((engine, prefix)).encode()).digest()[:HASH_BYTES] if prefix[1] else b""


def stored(engine: str, tokens: Iterable[int], salt: str = "", block_size: int | None = None) -> BlockStored:
    """The event of the last block of these tokens."""
    token_ids, size = tuple(tokens), block_size or BLOCK_SIZES[engine]
    parent = name_of(engine, (salt, token_ids[:-size]))
    return BlockStored(name_of(engine, (salt, token_ids)), parent, array("i", token_ids[-size:]).tobytes(), salt)


def removed(engine: str, tokens: Iterable[int], salt: str = "") -> BlockRemoved:
    return BlockRemoved(name_of(engine, (salt, tuple(tokens))))


def tell(prefixes: PrefixMap, engine: str, *events: CacheEvent, is_snapshot: bool = False) -> None:
    prefixes.take(engine, CacheNews(is_snapshot, events))


def match(prefixes: PrefixMap, tokens: Iterable[int], salt: str = "", now_s: float = 0.0) -> dict[str, int]:
    return prefixes.match(array("i", tokens), salt, now_s)


def tell_chain(prefixes: PrefixMap, engine: str, num_tokens: int) -> None:
    size = BLOCK_SIZES[engine]
    tell(prefixes, engine, *(stored(engine, range(end)) for end in range(size, num_tokens + 1, size)))


def test_engines_that_name_content_differently_are_found_with_the_tokens_they_hold() -> None:
    prefixes = PrefixMap()
    tell_chain(prefixes, "a", 6)
    tell_chain(prefixes, "b", 2)
    assert match(prefixes, range(20)) == {"a": 6, "b": 2}
    assert match(prefixes, [0, 1, 2, 9, 4, 5, 6]) == {"a": 2, "b": 2}
    assert match(prefixes, [9, *range(1, 20)]) == {}
    assert len(prefixes) == 3


def test_engines_have_their_own_block_sizes() -> None:
    prefixes = PrefixMap()
    tell_chain(prefixes, "a", 4)
    tell_chain(prefixes, "c", 6)
    assert match(prefixes, range(20)) == {"a": 4, "c": 6}
    assert match(prefixes, range(6)) == {"a": 4, "c": 3}


def test_the_last_token_of_a_prompt_is_never_cached() -> None:
    prefixes = PrefixMap()
    tell_chain(prefixes, "a", 6)
    assert [match(prefixes, range(length)).get("a", 0) for length in range(9)] == [0, 0, 0, 2, 2, 4, 4, 6, 6]


def test_a_salt_shares_with_itself_alone() -> None:
    prefixes = PrefixMap()
    tell(prefixes, "a", stored("a", [1, 2], "tenant"))
    assert match(prefixes, [1, 2, 3], "tenant") == {"a": 2}
    assert match(prefixes, [1, 2, 3]) == {}


def test_a_parent_that_is_removed_first_hides_its_children_until_it_is_stored_again() -> None:
    prefixes = PrefixMap()
    tell_chain(prefixes, "a", 6)
    tell(prefixes, "a", removed("a", range(2)))
    assert match(prefixes, range(20)) == {}
    tell(prefixes, "a", stored("a", range(2)))
    assert match(prefixes, range(20)) == {"a": 6}


def test_a_block_whose_parent_was_never_told_counts_once_it_is() -> None:
    prefixes = PrefixMap()
    tell(prefixes, "a", stored("a", range(8)), stored("a", range(4)), stored("a", range(6)), stored("a", [0, 1, 9, 9]))
    assert match(prefixes, range(20)) == {}
    assert len(prefixes) == 0
    tell(prefixes, "a", stored("a", range(2)))
    assert match(prefixes, range(20)) == {"a": 8}
    assert match(prefixes, [0, 1, 9, 9, 9]) == {"a": 4}


def test_an_orphan_that_is_removed_does_not_come_back_with_its_parent() -> None:
    prefixes = PrefixMap()
    tell(prefixes, "a", stored("a", range(4)), removed("a", range(4)), stored("a", range(2)))
    assert match(prefixes, range(20)) == {"a": 2}


def test_a_snapshot_replaces_what_was_told_of_its_engine_alone() -> None:
    prefixes = PrefixMap()
    for engine in "ab":
        tell_chain(prefixes, engine, 6)
    tell(prefixes, "a", stored("a", [7, 8]), is_snapshot=True)
    assert match(prefixes, range(20)) == {"b": 6}
    assert match(prefixes, [7, 8, 9]) == {"a": 2}


def test_an_engine_that_clears_its_cache_has_nothing_and_may_store_again() -> None:
    prefixes = PrefixMap()
    tell_chain(prefixes, "a", 6)
    prefixes.expect("a", array("i", [7, 8]), "", 2, 0.0)
    tell(prefixes, "a", CacheCleared(), stored("a", range(2)))
    assert match(prefixes, range(20)) == {"a": 2}
    assert match(prefixes, [7, 8, 9]) == {}


def test_a_forgotten_engine_leaves_nothing_and_its_place_to_another() -> None:
    prefixes = PrefixMap()
    for engine in "ab":
        tell_chain(prefixes, engine, 4)
    prefixes.expect("a", array("i", range(8)), "", 2, 0.0)
    prefixes.forget("a")
    prefixes.forget("a")
    tell_chain(prefixes, "c", 3)
    assert match(prefixes, range(20)) == {"b": 4, "c": 3}
    prefixes.forget("b")
    prefixes.forget("c")
    assert len(prefixes) == 0


def test_a_prompt_that_was_sent_is_expected_for_a_while() -> None:
    prefixes = PrefixMap()
    prefixes.expect("a", array("i", range(5)), "", 2, 10.0)
    assert match(prefixes, range(20), now_s=10.0 + EXPECTED_FOR_S - 0.1) == {"a": 4}
    assert match(prefixes, range(20), now_s=10.0 + EXPECTED_FOR_S) == {}
    assert len(prefixes) == 0


def test_what_is_sent_again_is_expected_anew() -> None:
    prefixes = PrefixMap()
    prefixes.expect("a", array("i", range(6)), "", 2, 0.0)
    prefixes.expect("a", array("i", range(4)), "", 2, 5.0)
    assert match(prefixes, range(20), now_s=EXPECTED_FOR_S + 1) == {"a": 4}
    assert match(prefixes, range(20), now_s=EXPECTED_FOR_S + 5) == {}


def test_what_an_event_confirms_stays_until_an_event_removes_it() -> None:
    prefixes = PrefixMap()
    prefixes.expect("a", array("i", range(4)), "", 2, 0.0)
    tell(prefixes, "a", stored("a", range(2)))
    assert match(prefixes, range(20), now_s=1.0) == {"a": 4}
    assert match(prefixes, range(20), now_s=EXPECTED_FOR_S) == {"a": 2}
    prefixes.expect("a", array("i", range(2)), "", 2, EXPECTED_FOR_S)
    tell(prefixes, "a", removed("a", range(2)))
    assert match(prefixes, range(20), now_s=EXPECTED_FOR_S) == {}


def test_a_snapshot_does_not_end_what_is_expected() -> None:
    prefixes = PrefixMap()
    prefixes.expect("a", array("i", range(4)), "", 2, 0.0)
    tell(prefixes, "a", is_snapshot=True)
    assert match(prefixes, range(20)) == {"a": 4}


class NaiveMap:
    """The same, with all tokens of all blocks, and no thought for time or memory."""

    def __init__(self) -> None:
        self.told: dict[str, set[Prefix]] = {engine: set() for engine in BLOCK_SIZES}
        self.held: dict[str, set[Prefix]] = {engine: set() for engine in BLOCK_SIZES}
        self.expected: dict[str, dict[Prefix, float]] = {engine: {} for engine in BLOCK_SIZES}

    def store(self, engine: str, block: Prefix) -> None:
        """It counts when its parent does, and goes on to when the parent is removed."""
        self.told[engine].add(block)
        for salt, tokens in sorted(self.told[engine]):
            parent = salt, tokens[: -BLOCK_SIZES[engine]]
            if not parent[1] or parent in self.held[engine]:
                self.held[engine].add((salt, tokens))
                self.expected[engine].pop((salt, tokens), None)

    def remove(self, engine: str, block: Prefix) -> None:
        self.told[engine].discard(block)
        self.held[engine].discard(block)

    def clear(self, engine: str) -> None:
        for known in (self.told, self.held, self.expected):
            known[engine].clear()

    def snapshot(self, engine: str) -> list[Prefix]:
        """All that the engine has; what it knows of them starts over."""
        blocks = sorted(self.told[engine])
        self.told[engine].clear()
        self.held[engine].clear()
        for block in blocks:
            self.store(engine, block)
        return blocks

    def expect(self, engine: str, prefix: Prefix, now_s: float) -> None:
        salt, tokens = prefix
        size = BLOCK_SIZES[engine]
        for end in range(size, len(tokens) + 1, size):
            if (salt, tokens[:end]) not in self.held[engine]:
                self.expected[engine][salt, tokens[:end]] = now_s + EXPECTED_FOR_S

    def match(self, prefix: Prefix, now_s: float) -> dict[str, int]:
        salt, tokens = prefix
        found = {}
        for engine, size in BLOCK_SIZES.items():
            num_tokens = 0
            while num_tokens + size < len(tokens) and self._has(engine, (salt, tokens[: num_tokens + size]), now_s):
                num_tokens += size
            if num_tokens:
                found[engine] = num_tokens
        return found

    def _has(self, engine: str, block: Prefix, now_s: float) -> bool:
        return block in self.held[engine] or self.expected[engine].get(block, 0.0) > now_s


engines = st.sampled_from(sorted(BLOCK_SIZES))
prompts = st.tuples(st.sampled_from(["", "tenant"]), st.lists(st.integers(0, 1), max_size=9).map(tuple))
operations = st.one_of(
    st.tuples(st.sampled_from(["store", "remove", "expect", "match"]), engines, prompts),
    st.tuples(st.sampled_from(["clear", "forget", "snapshot"]), engines, st.just(("", ()))),
    st.tuples(st.just("wait"), engines, st.just(("", ()))),
)


@settings(max_examples=300)
@given(st.lists(operations, max_size=60))
def test_the_map_agrees_with_a_naive_one(steps: list[tuple[str, str, Prefix]]) -> None:
    prefixes, naive, now_s = PrefixMap(), NaiveMap(), 0.0
    for action, engine, (salt, tokens) in steps:
        size = BLOCK_SIZES[engine]
        block = salt, tokens[: len(tokens) // size * size]
        if action == "store" and block[1]:
            tell(prefixes, engine, stored(engine, block[1], salt))
            naive.store(engine, block)
        elif action == "remove" and block in naive.told[engine]:
            tell(prefixes, engine, removed(engine, block[1], salt))
            naive.remove(engine, block)
        elif action == "expect":
            prefixes.expect(engine, array("i", tokens), salt, size, now_s)
            naive.expect(engine, (salt, tokens), now_s)
        elif action == "clear":
            tell(prefixes, engine, CacheCleared())
            naive.clear(engine)
        elif action == "forget":
            prefixes.forget(engine)
            naive.clear(engine)
        elif action == "snapshot":
            blocks = naive.snapshot(engine)
            tell(prefixes, engine, *(stored(engine, part, of) for of, part in blocks), is_snapshot=True)
        elif action == "wait":
            now_s += EXPECTED_FOR_S / 3
        assert prefixes.match(array("i", tokens), salt, now_s) == naive.match((salt, tokens), now_s)
    for engine in BLOCK_SIZES:
        prefixes.forget(engine)
    assert len(prefixes) == 0


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=30), st.data())
def test_the_map_foretells_what_a_scheduler_finds(asked: list[list[int]], data: st.DataObject) -> None:
    harness, prefixes = Harness(num_blocks=12), PrefixMap()
    harness.scheduler.watch_cache(WATCHER)
    for stream_id, prompt in enumerate(asked, start=1):
        for _, message in harness.scheduler.journal.take_messages():
            prefixes.take("a", CacheNews(message.is_snapshot, message.events))
        foretold = match(prefixes, prompt).get("a", 0)
        harness.add(stream_id, prompt, max_tokens=data.draw(st.integers(1, 10)))
        harness.run()
        assert harness.ended[stream_id].num_cached_tokens == foretold
