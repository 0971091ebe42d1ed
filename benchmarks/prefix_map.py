"""What does it cost a gateway to know what its engines have cached? Bytes and CPU time a block, CPU time a prompt.

python -m benchmarks.prefix_map [--blocks 1000000] [--engines 3 100 1000]
"""

import argparse
import gc
import json
import random
import time
from array import array
from collections.abc import Callable

import psutil

from pagewire.ipc.cache_events import BlockStored
from scheduler_service.gateway.engines.cache_watch import CacheNews
from scheduler_service.gateway.engines.prefix_map import PrefixMap

_BLOCK_TOKENS, _CHAIN, _PROMPT_TOKENS = 16, 64, 1000
_VOCAB, _REPEATS = 128_000, 500


def make_chain(source: random.Random) -> list[BlockStored]:
    """The events of one long prompt."""
    events, parent = [], b""
    for _ in range(_CHAIN):
        token_ids = array("i", (source.randrange(_VOCAB) for _ in range(_BLOCK_TOKENS)))
        name = source.randbytes(8)
        events.append(BlockStored(name, parent, token_ids.tobytes(), ""))
        parent = name
    return events


def measure_blocks(num_blocks: int) -> dict[str, float]:
    """Many blocks of one engine."""
    source, prefixes, seconds = random.Random(0), PrefixMap(), 0.0
    gc.collect()
    before = psutil.Process().memory_info().rss
    while len(prefixes) < num_blocks:
        events = make_chain(source)
        start_s = time.process_time()
        prefixes.take("engine", CacheNews(False, events))
        seconds += time.process_time() - start_s
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    return {
        "blocks": len(prefixes),
        "bytes_a_block": grown / len(prefixes),
        "us_to_store_a_block": 1e6 * seconds / len(prefixes),
        "ms_to_forget_all": 1e3 * _seconds(lambda: prefixes.forget("engine"), 1),
    }


def measure_prompts(num_engines: int) -> dict[str, float]:
    """A prompt that all engines have, and one that none has."""
    source, prefixes = random.Random(0), PrefixMap()
    events = make_chain(source)
    for number in range(num_engines):
        prefixes.take(f"engine{number}", CacheNews(True, events))
    known = array("i", b"".join(event.token_ids for event in events))[:_PROMPT_TOKENS]
    unknown = array("i", reversed(known))
    return {
        "engines": num_engines,
        "prompt_tokens": _PROMPT_TOKENS,
        "us_when_all_have_it": 1e6 * _seconds(lambda: prefixes.match(known, "", 0.0), _REPEATS),
        "us_when_none_has_it": 1e6 * _seconds(lambda: prefixes.match(unknown, "", 0.0), _REPEATS),
    }


def _seconds(action: Callable[[], object], times: int) -> float:
    start_s = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start_s) / times


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_map", description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--engines", type=int, nargs="+", default=[3, 100, 1000])
    flags = parser.parse_args()
    report = {
        "blocks": [measure_blocks(count) for count in flags.blocks],
        "prompts": [measure_prompts(count) for count in flags.engines],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
