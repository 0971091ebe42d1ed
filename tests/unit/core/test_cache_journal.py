"""Does a watcher of the prefix cache know exactly what it holds, at any time?"""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from pagewire.ipc.cache_events import BlockStored
from pagewire.ipc.requests import Sampling
from scheduler_service.core.cache_journal import CacheJournal
from scheduler_service.core.sequence import Sequence
from tests.fakes.cache_mirror import CacheMirror, cached_names
from tests.unit.core.harness import Harness

WATCHER, OTHER = b"watcher1", b"watcher2"
PROMPT = list(range(10, 22))


def tell(harness: Harness, **mirrors: CacheMirror) -> None:
    """Deliver what the journal has to say."""
    for gateway, message in harness.scheduler.journal.take_messages():
        mirrors[gateway.decode()].take(message)


def watched(**config: object) -> tuple[Harness, CacheMirror]:
    harness, mirror = Harness(**config), CacheMirror()  # type: ignore[arg-type]
    harness.scheduler.watch_cache(WATCHER)
    tell(harness, watcher1=mirror)
    return harness, mirror


def make_sequence(token_ids: list[int]) -> Sequence:
    return Sequence(
        gateway=b"gateway1",
        stream_id=1,
        request_id="r",
        arrival=0,
        token_ids=array("i", token_ids),
        num_prompt_tokens=len(token_ids),
        max_total_tokens=10,
        min_total_tokens=0,
        stop_token_ids=frozenset(),
        sampling=Sampling(0.0, 0, 1.0, 0.0, 0),
        priority=0,
        cache_salt="",
        deadline_s=None,
    )


def run(harness: Harness, stream_id: int, prompt: list[int], **changes: object) -> None:
    harness.add(stream_id, prompt, **changes)
    harness.run()


def test_stored_blocks_come_with_their_tokens_parents_and_salt() -> None:
    harness, mirror = watched()
    run(harness, 1, PROMPT, max_tokens=1)
    run(harness, 2, PROMPT, max_tokens=1, cache_salt="tenant")
    tell(harness, watcher1=mirror)
    lengths = (4, 8, 12)
    assert mirror.prefixes() == {(salt, tuple(PROMPT[:length])) for salt in ("", "tenant") for length in lengths}


def test_evicted_blocks_are_removed() -> None:
    harness, mirror = watched(num_blocks=5)
    run(harness, 1, PROMPT, max_tokens=2)
    run(harness, 2, [1, 2, 3, 4, 5], max_tokens=9)
    tell(harness, watcher1=mirror)
    assert mirror.blocks.keys() == cached_names(harness.scheduler)
    assert ("", tuple(PROMPT)) not in mirror.prefixes()
    assert ("", (1, 2, 3, 4)) in mirror.prefixes()


def test_flush_forgets_idle_and_held_blocks_and_running_sequences_go_on() -> None:
    harness, mirror = watched()
    run(harness, 1, PROMPT, max_tokens=1)
    harness.add(2, [1, 2, 3, 4, 5, 6], max_tokens=4)
    harness.schedule()
    harness.finish_step()
    assert harness.scheduler.flush_cache() == 4
    harness.scheduler.check_integrity()
    tell(harness, watcher1=mirror)
    assert mirror.blocks == {}
    harness.run()
    assert len(harness.tokens[2]) == 4
    run(harness, 3, PROMPT, max_tokens=1)
    assert harness.ended[3].num_cached_tokens == 0
    tell(harness, watcher1=mirror)
    assert mirror.blocks.keys() == cached_names(harness.scheduler)


def test_a_lost_worker_clears_the_cache() -> None:
    harness, mirror = watched()
    run(harness, 1, PROMPT, max_tokens=1)
    harness.lose_worker()
    tell(harness, watcher1=mirror)
    assert mirror.blocks == {}


def test_a_block_cached_before_anybody_watched_is_told_of_when_it_is_shared() -> None:
    harness = Harness()
    run(harness, 1, PROMPT, max_tokens=1)
    assert harness.scheduler.journal.take_messages() == []
    mirror = CacheMirror()
    harness.scheduler.watch_cache(WATCHER)
    tell(harness, watcher1=mirror)
    assert mirror.blocks == {}
    run(harness, 2, [*PROMPT[:8], 1], max_tokens=1)
    tell(harness, watcher1=mirror)
    assert mirror.prefixes() == {("", tuple(PROMPT[:4])), ("", tuple(PROMPT[:8]))}


def test_what_running_sequences_hold_is_known_at_once() -> None:
    harness = Harness()
    harness.add(1, PROMPT, max_tokens=6)
    harness.schedule()
    harness.finish_step()
    mirror = CacheMirror()
    harness.scheduler.watch_cache(WATCHER)
    tell(harness, watcher1=mirror)
    assert mirror.prefixes() == {("", tuple(PROMPT[:length])) for length in (4, 8, 12)}
    harness.run()
    tell(harness, watcher1=mirror)
    assert len(mirror.prefixes()) == 4


def test_sequences_that_run_when_the_cache_is_flushed_offer_nothing() -> None:
    harness, mirror = watched()
    harness.add(1, PROMPT, max_tokens=6)
    harness.schedule()
    harness.scheduler.flush_cache()
    harness.scheduler.check_integrity()
    harness.run()
    assert cached_names(harness.scheduler) == set()
    run(harness, 2, PROMPT, max_tokens=1)
    tell(harness, watcher1=mirror)
    assert mirror.blocks.keys() == cached_names(harness.scheduler) != set()


def test_a_snapshot_has_parents_first_though_they_were_stored_last() -> None:
    journal = CacheJournal(block_size=1)
    journal.watch(WATCHER)
    chain = make_sequence([1, 2, 3])
    chain.block_hashes += [bytes([index]) * 16 for index in range(3)]
    journal.note_stored(chain, 3)
    journal.note_removed(chain.block_hashes[0])
    journal.note_block(chain, 0)
    ((_, message),) = journal.take_messages()
    assert [event.block_hash[0] for event in message.events if isinstance(event, BlockStored)] == [0, 1, 2]
    # A block whose parent is gone is still cached.
    journal.note_removed(chain.block_hashes[1])
    journal.watch(OTHER)
    *_, (_, message) = journal.take_messages()
    assert [event.block_hash[0] for event in message.events if isinstance(event, BlockStored)] == [2, 0]


def test_nobody_waits_for_blocks_that_a_flush_keeps_from_being_offered() -> None:
    harness = Harness(max_num_batched_tokens=4)
    harness.add(1, PROMPT, max_tokens=6)
    harness.schedule()
    # The same prompt: it lets the first compute it.
    harness.add(2, PROMPT, max_tokens=6)
    harness.scheduler.flush_cache()
    while not harness.tokens[1]:
        harness.schedule()
        harness.finish_step()
    harness.schedule()
    assert harness.scheduler.load.num_running == 2
    harness.run()
    assert harness.tokens[1] == harness.tokens[2]


def test_nothing_is_kept_once_nobody_watches() -> None:
    harness, _ = watched()
    run(harness, 1, PROMPT, max_tokens=1)
    harness.scheduler.journal.unwatch(WATCHER)
    assert not harness.scheduler.journal.is_kept
    assert harness.scheduler.journal.take_messages() == []
    late = CacheMirror()
    harness.scheduler.watch_cache(OTHER)
    tell(harness, watcher2=late)
    assert late.blocks == {}


@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 6), st.sampled_from(["", "x"])),
        min_size=1,
        max_size=12,
    ),
    joins_after=st.integers(0, 12),
    flushes_after=st.integers(0, 12),
    num_blocks=st.integers(10, 16),
)
def test_every_watcher_knows_what_is_cached(requests, joins_after, flushes_after, num_blocks) -> None:
    harness, first = watched(num_blocks=num_blocks, block_size=2)
    second = CacheMirror()
    for stream_id, (prompt, max_tokens, salt) in enumerate(requests):
        run(harness, stream_id, prompt, max_tokens=max_tokens, cache_salt=salt)
        if stream_id == joins_after:
            harness.scheduler.watch_cache(OTHER)
        if stream_id == flushes_after:
            harness.scheduler.flush_cache()
            # Another snapshot for one that watches already.
            harness.scheduler.watch_cache(WATCHER)
        tell(harness, watcher1=first, watcher2=second)
        assert first.blocks.keys() == cached_names(harness.scheduler)
        if stream_id >= joins_after:
            assert second.blocks == first.blocks
