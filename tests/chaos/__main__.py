"""The long form of the chaos suite: python -m tests.chaos --kills 30 --streams 64 --victims worker

Prints a table, and ends with status 1 if a stream was not intact or anything was left over.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scheduler_service.supervisor.demo_model import fetch_demo
from tests.chaos.run import Kill, Plan, Result, run_chaos
from tests.chaos.service import VICTIMS


def main() -> int:
    """Run it; gives the exit status."""
    options = _parse()
    cache = Path.home() / ".cache" / "pagewire"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pagewire-chaos-") as folder:
        model = fetch_demo(cache, Path(folder) / "download", lambda stage, done, total: None)
        plan = Plan(options.kills, options.streams, options.max_tokens, options.victims, options.gateways, options.seed)
        result = run_chaos(model, Path(folder), plan, "--cpu-memory-gib", "1", "--log-level", "error")
    console = Console()
    console.print(_table(result))
    for line in result.wrong:
        console.print(line, markup=False, highlight=False)
    return 1 if result.wrong else 0


def _table(result: Result) -> Table:
    table = Table("victim", "kills", "recoveries", "recovery p50", "p99", title="kill -9 under load")
    for victim in sorted({kill.victim for kill in result.kills}):
        table.add_row(victim, *_row([kill for kill in result.kills if kill.victim == victim]))
    table.add_row("all", *_row(result.kills))
    table.caption = f"{result.num_intact} of {result.num_streams} streams intact"
    return table


def _row(kills: list[Kill]) -> list[str]:
    times = sorted(kill.recovery_s for kill in kills)
    num_deaths = sum(2 if "successor" in kill.moment else 1 for kill in kills)
    if not times:
        return ["0", "0", "", ""]
    worst = times[min(len(times) - 1, int(0.99 * len(times)))]
    return [str(num_deaths), str(len(times)), f"{statistics.median(times):.1f} s", f"{worst:.1f} s"]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="times that the service has to recover")
    parser.add_argument("--streams", type=int, default=64, help="open at once")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument(
        "--victims", type=_victims, default=("worker",), help=f"comma-separated, of {', '.join(VICTIMS)}"
    )
    return parser.parse_args()


def _victims(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= VICTIMS.keys():
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(VICTIMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
