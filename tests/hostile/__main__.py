"""Attack a service at length: python -m tests.hostile --cases 100000

First a fuzz of every protocol, then every attack. Prints a line for each batch of the fuzz and a table at the end, and
ends with status 1 if the service did anything that it must not do.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagewire_client.cli.bench.output import stdout_width
from tests.hostile.attacks import ATTACKS, Report, run_attacks
from tests.hostile.fuzz import Plan, Result, run_fuzz
from tests.hostile.service import HostileService, Vitals


def main() -> int:
    """Run it; gives the exit status."""
    options = _parse()
    console = Console(highlight=False, width=stdout_width())
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, HostileService(Path(folder)) as service:
        if options.cases:
            result = _fuzz(service, options, console)
            console.print(_fuzz_table(result))
            wrong += result.wrong
        reports = []
        if not wrong:
            sizes = {name: max(1, round(ATTACKS[name].long * options.scale)) for name in options.attacks}
            for report in run_attacks(service, sizes):
                console.print(f"{report.name}: {report.seconds:.1f} s, {'wrong' if report.wrong else 'well'}")
                reports.append(report)
                wrong += [f"{report.name}: {line}" for line in report.wrong]
            console.print(_attack_table(reports))
    for line in wrong:
        console.print(line, markup=False, soft_wrap=True)
    return 1 if wrong else 0


def _fuzz(service: HostileService, options: argparse.Namespace, console: Console) -> Result:
    start_s = time.monotonic()

    def show(result: Result, vitals: Vitals) -> None:
        memory = ", ".join(
            f"{name} {size >> 20} MiB {files} files"
            for name, size, files in zip(vitals.names, vitals.resident_bytes, vitals.num_files, strict=True)
        )
        console.print(f"{result.num_cases} cases in {time.monotonic() - start_s:.0f} s: {memory}")

    plan = Plan(options.cases, options.seed, options.first, protocols=options.protocols)
    return run_fuzz(service, plan, show)


def _fuzz_table(result: Result) -> Table:
    table = Table("method", "cases", "outcomes", title="Fuzz")
    methods = sorted({method for method, _ in result.outcomes})
    for method in methods:
        outcomes = Counter({outcome: count for (name, outcome), count in result.outcomes.items() if name == method})
        ends = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        table.add_row(method, str(outcomes.total()), ends)
    table.caption = f"{result.num_cases} cases, {len(result.wrong)} wrong"
    return table


def _attack_table(reports: list[Report]) -> Table:
    table = Table("attack", "size", "seconds", "bystanders' answers", "peak growth", "", title="Attacks")
    for report in reports:
        growth = f"{report.peak_growth_bytes >> 20} MiB"
        end = "wrong" if report.wrong else "well"
        table.add_row(report.name, str(report.size), f"{report.seconds:.1f}", str(report.num_answers), growth, end)
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=100_000, help="of the fuzz")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzz")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one that was wrong")
    parser.add_argument(
        "--protocols", type=_names, default=(), help="comma-separated gRPC services, http; default: all"
    )
    parser.add_argument(
        "--attacks", type=_attacks, default=tuple(ATTACKS), help=f"comma-separated: {', '.join(ATTACKS)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the attacks' sizes")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _attacks(text: str) -> tuple[str, ...]:
    if unknown := set(_names(text)) - ATTACKS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: must be some of {', '.join(ATTACKS)}")
    return _names(text)


if __name__ == "__main__":
    sys.exit(main())
