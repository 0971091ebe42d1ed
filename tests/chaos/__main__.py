"""The long form of the chaos suite: python -m tests.chaos --kills 30 --streams 64

Prints a line for each disturbance and a table at the end, and ends with status 1 if a stream was not intact or
anything was left over.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scheduler_service.supervisor.demo_model import fetch_demo
from tests.chaos.run import MOMENTS, Event, Plan, Result, run_chaos
from tests.chaos.service import VICTIMS


def main() -> int:
    """Run it; gives the exit status."""
    options, service_flags = _parse()
    console = Console()
    cache = Path.home() / ".cache" / "pagewire"
    cache.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        options.kills,
        options.streams,
        options.max_tokens,
        options.victims,
        options.gateways,
        options.seed,
        options.moments,
        options.golden,
    )
    with tempfile.TemporaryDirectory(prefix="pagewire-chaos-") as folder:
        model = fetch_demo(cache, Path(folder) / "download", lambda stage, done, total: None)
        result = run_chaos(model, Path(folder), plan, *service_flags, on_event=partial(_print_last, console, plan))
    console.print(_table(result))
    for line in result.wrong:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if result.wrong else 0


def _print_last(console: Console, plan: Plan, result: Result) -> None:
    event = result.events[-1]
    console.print(
        f"{result.num_kills:3} of {plan.num_kills} kills  {event.moment:18} {event.victim:18} "
        f"recovered in {event.recovery_s:.1f} s",
        highlight=False,
    )


def _table(result: Result) -> Table:
    table = Table("", "kills", "recoveries", "recovery p50", "p99", title="kill -9 under load")
    _add_rows(table, result.events, lambda event: event.victim)
    _add_rows(table, result.events, lambda event: event.moment)
    table.add_row("all", *_row(result.events))
    table.caption = f"{result.num_intact} of {result.num_streams} streams intact"
    return table


def _add_rows(table: Table, events: Sequence[Event], name_of: Callable[[Event], str]) -> None:
    for name in dict.fromkeys(sorted(map(name_of, events), key=lambda name: ("+" in name, name))):
        table.add_row(name, *_row([event for event in events if name_of(event) == name]))
    table.add_section()


def _row(events: Sequence[Event]) -> list[str]:
    times = sorted(event.recovery_s for event in events)
    if not times:
        return ["0", "0", "", ""]
    worst = times[min(len(times) - 1, int(0.99 * len(times)))]
    num_kills = sum(event.num_kills for event in events)
    return [str(num_kills), str(len(times)), f"{statistics.median(times):.1f} s", f"{worst:.1f} s"]


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, allow_abbrev=False, epilog="Other flags go to the service."
    )
    parser.add_argument("--kills", type=int, default=30, help="at least so many")
    parser.add_argument("--streams", type=int, default=64, help="open at once")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument(
        "--golden",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the undisturbed tokens must be those of float32 (not with --dtype bfloat16)",
    )
    _add_choice(parser, "--victims", VICTIMS)
    _add_choice(parser, "--moments", MOMENTS)
    return parser.parse_known_args()


def _add_choice(parser: argparse.ArgumentParser, flag: str, names: Mapping[str, object]) -> None:
    def chosen(text: str) -> tuple[str, ...]:
        if not set(text.split(",")) <= names.keys():
            raise argparse.ArgumentTypeError(f"must be some of {', '.join(names)}")
        return tuple(text.split(","))

    help_text = f"comma-separated, of {', '.join(names)}; default: all"
    parser.add_argument(flag, type=chosen, default=tuple(names), help=help_text)


if __name__ == "__main__":
    sys.exit(main())
