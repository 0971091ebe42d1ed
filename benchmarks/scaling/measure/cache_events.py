"""What do cache events cost, the engine that tells them and the gateway that mirrors them?

The events are those of a simulated engine under chats.
"""

import gc
import time
import tracemalloc
from array import array
from random import Random

from benchmarks.scaling.detail import BLOCK_SIZE, EngineSize, run_users
from benchmarks.scaling.shapes import QWEN3_8B
from benchmarks.scaling.step_time import fit
from benchmarks.scaling.workload import CHATS, Users
from pagewire.ipc.cache_events import BlockStored, CacheEvents
from pagewire.ipc.codec import Codec, new_incarnation
from pagewire.ipc.requests import SchedulerMessage
from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.engines.engine_load import LoadEstimate
from scheduler_service.gateway.engines.prefix_map import PrefixMap
from scheduler_service.gateway.engines.routing import Candidate, PrefixRouter

_NUM_USERS = 250
_WARM_UP_S, _SECONDS = 5.0, 20.0
_NUM_ENGINES = 8
_MATCH_TOKENS = 1000
_NUM_CHOICES = 300
_FEW, _MANY = 16, 512


def measure_cache_events() -> dict[str, float]:
    """Microseconds of CPU time and bytes, for each event or block."""
    size = EngineSize(QWEN3_8B, 256)
    told = run_users(
        fit(), size, Users(CHATS, _NUM_USERS, 1), warm_up_s=_WARM_UP_S, seconds=_SECONDS, keeps_events=True
    ).told
    messages = told.cache_messages
    num_events = told.num_stored + told.num_removed
    codec: Codec[SchedulerMessage] = Codec(SchedulerMessage)
    me = new_incarnation()
    start_s = time.thread_time()
    frames = [codec.encode(message, me, me) for message in messages]
    encode_s = time.thread_time() - start_s
    start_s = time.thread_time()
    for frame in frames:
        codec.decode(frame)
    decode_s = time.thread_time() - start_s
    prefixes = PrefixMap()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for engine in range(_NUM_ENGINES):
        _mirror(prefixes, str(engine), messages, codec, frames)
    gc.collect()
    mirror_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    num_blocks = _NUM_ENGINES * _num_left(messages)
    start_s = time.thread_time()
    _mirror(prefixes, "further", messages, codec, frames)
    take_s = time.thread_time() - start_s - decode_s
    few_us, many_us = _choose_us(_FEW), _choose_us(_MANY)
    return {
        "cache_event_bytes": sum(map(len, frames)) / num_events,
        "engine_cache_event_us": 1e6 * encode_s / num_events,
        "gateway_cache_event_us": 1e6 * (decode_s + take_s) / num_events,
        "gateway_cache_block_bytes": mirror_bytes / num_blocks,
        "gateway_match_us": _match_us(),
        "gateway_choose_us": few_us,
        "gateway_choose_engine_us": (many_us - few_us) / (_MANY - _FEW),
    }


def _mirror(
    prefixes: PrefixMap, engine: str, messages: list[CacheEvents], codec: Codec[SchedulerMessage], frames: list[bytes]
) -> None:
    for frame in frames:
        events = codec.decode(frame).message
        assert isinstance(events, CacheEvents)
        prefixes.take(engine, CacheNews(events.is_snapshot, events.events))


def _num_left(messages: list[CacheEvents]) -> int:
    """Blocks that are cached after these messages, of those that they tell."""
    cached: set[bytes] = set()
    for message in messages:
        for event in message.events:
            if isinstance(event, BlockStored):
                cached.add(event.block_hash)
            elif hasattr(event, "block_hash"):
                cached.discard(event.block_hash)
    return len(cached)


def _match_us() -> float:
    """Microseconds of looking up a prompt of `_MATCH_TOKENS` tokens that is cached to its end in one engine."""
    prefixes, prompt = PrefixMap(), array("i", range(_MATCH_TOKENS))
    prefixes.expect("somewhere", prompt, "", BLOCK_SIZE, 0.0)
    start_s = time.thread_time()
    for _ in range(_NUM_CHOICES):
        prefixes.match(prompt, "", 0.0)
    return 1e6 * (time.thread_time() - start_s) / _NUM_CHOICES


def _choose_us(num_engines: int) -> float:
    """Microseconds of choosing among so many engines, whose loads are looked at first."""
    router, load = PrefixRouter(Random(1)), LoadEstimate()
    names = [str(number) for number in range(num_engines)]
    start_s = time.thread_time()
    for _ in range(_NUM_CHOICES):
        found = {names[0]: _MATCH_TOKENS}
        router.choose([Candidate(name, found.get(name, 0), load.now) for name in names], _MATCH_TOKENS)
    return 1e6 * (time.thread_time() - start_s) / _NUM_CHOICES
