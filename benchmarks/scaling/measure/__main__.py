"""Measures what single parts cost on this machine, and writes it to costs.json. Takes about two minutes."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.progress import track

from benchmarks.scaling.costs import COSTS_FILE
from benchmarks.scaling.measure.cache_events import measure_cache_events
from benchmarks.scaling.measure.engine_sockets import measure_engine_sockets
from benchmarks.scaling.measure.gateway_sockets import measure_gateway_sockets
from benchmarks.scaling.measure.scheduler import measure_steps
from benchmarks.scaling.measure.streams import measure_streams

_PARTS: tuple[Callable[[], Mapping[str, float]], ...] = (
    measure_steps,
    measure_engine_sockets,
    measure_gateway_sockets,
    measure_cache_events,
    measure_streams,
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.measure", description=__doc__)
    parser.add_argument("--json", type=Path, default=COSTS_FILE, metavar="FILE", help="where to write it")
    flags = parser.parse_args()
    figures: dict[str, float] = {}
    for part in track(_PARTS, description="measuring"):
        figures |= part()
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    text = json.dumps(rounded, indent=2)
    flags.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
