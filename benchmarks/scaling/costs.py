"""What single parts cost, as `python -m benchmarks.scaling.measure` found it and costs.json keeps it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

COSTS_FILE = Path(__file__).with_name("costs.json")


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds (us) of CPU time of the thread that does the work; `io` is ZeroMQ's thread.

    Of the scheduler: a step and each sequence in it, a message to a gateway, an event of its cache to one gateway. Of
    a gateway: a token, a write to a caller, a request, a message of an engine, a second of being connected to an
    engine, an event of an engine's cache, finding a prompt of 1,000 tokens and choosing for it (of 16 engines, and of
    each further one).
    """

    scheduler_step_us: float
    scheduler_sequence_us: float
    engine_message_us: float
    engine_io_message_us: float
    engine_cache_event_us: float
    cache_event_bytes: float
    gateway_token_us: float
    gateway_write_us: float
    gateway_request_us: float
    gateway_stream_kib: float
    gateway_base_mib: float
    gateway_message_us: float
    gateway_io_message_us: float
    gateway_engine_idle_us: float
    gateway_engine_fds: float
    gateway_engine_kib: float
    gateway_cache_event_us: float
    gateway_cache_block_bytes: float
    gateway_match_us: float
    gateway_choose_us: float
    gateway_choose_engine_us: float

    @classmethod
    def read(cls, path: Path = COSTS_FILE) -> Self:
        """Those in a file.

        Raises:
            ValueError: the file lacks some, or says something else.
        """
        try:
            return msgspec.convert(json.loads(path.read_text()), cls)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no costs in {path}: {error}; make them with 'python -m benchmarks.scaling.measure'"
            ) from error
