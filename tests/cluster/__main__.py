"""The long form of the cluster suite: python -m tests.cluster --streams 200

Prints what happens and a table at the end, and ends with status 1 if a stream failed or differed.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagewire_client.cli.bench.output import stdout_width
from scheduler_service.supervisor.demo_model import fetch_demo
from tests.cluster import sandbox
from tests.cluster.cluster import Cluster
from tests.cluster.load import Result, make_requests
from tests.cluster.release import install
from tests.cluster.scenarios import SCENARIOS, Plan, run_scenarios
from tests.fakes.chart import HELM_4
from tests.fakes.helm_tool import fetch_helm

_LONG = tuple(name for name in SCENARIOS if name not in ("rolling-engines", "rolling-gateways"))
_MOST_LINES = 20


def main() -> int:
    """Run it in a sandbox; gives the exit status."""
    options = _parse()
    if sandbox.is_inside():
        return asyncio.run(_run(options))
    if reason := sandbox.why_not():
        print(f"this machine cannot run it: {reason}", file=sys.stderr)
        return 1
    fetch_helm(HELM_4)  # nothing can be fetched from inside
    cache = Path.home() / ".cache" / "pagewire"
    with tempfile.TemporaryDirectory(prefix="pagewire-cluster-") as folder:
        inside = ["--folder", folder]
        if options.model == "demo":
            model = fetch_demo(cache, Path(folder) / "download", lambda stage, done, total: None)
            inside += ["--demo-model", str(model)]
        return sandbox.run([sys.executable, "-m", "tests.cluster", *sys.argv[1:], *inside], capture=False).returncode


async def _run(options: argparse.Namespace) -> int:
    console = Console(highlight=False, markup=False, soft_wrap=True, width=stdout_width())
    release = install(options.folder / "release", options.demo_model, *options.set)
    plan = Plan(options.scenarios, options.partition_s)
    requests = make_requests(options.streams, options.max_tokens, release.vocab_size, options.seed)
    tell = console.print if options.verbose else lambda text: None
    async with Cluster(release.manifests, options.folder / "pods", release.stores, tell) as cluster:
        results = await run_scenarios(
            cluster,
            release,
            plan,
            requests,
            lambda result: console.print(f"{result.name}: {result.num_streams} streams"),
        )
        await cluster.delete_all()
    wrong = [line for result in results for line in result.wrong]
    console.print(table(results))
    for line in wrong[:_MOST_LINES]:
        console.print(line)
    if len(wrong) > _MOST_LINES:
        console.print(f"and {len(wrong) - _MOST_LINES} more")
    return 1 if wrong else 0


def table(results: list[Result]) -> Table:
    """One row for each scenario."""
    explained = "moved: by gateways, between engines; resumed: by clients; gap, first: longest waits for a token, in s"
    found = Table(title="streams while the cluster is disturbed", caption=explained)
    for column in ("", "s", "streams", "tokens", "failed", "different", "moved", "resumed", "gap", "first"):
        found.add_column(column, no_wrap=True)
    for result in results:
        ends = (result.num_streams, result.num_tokens, result.num_failed, result.num_different)
        counts = (*ends, result.num_moved, result.num_resumed)
        times = (f"{result.longest_gap_s:.1f}", f"{result.longest_first_s:.1f}")
        found.add_row(result.name, f"{result.duration_s:.0f}", *map(str, counts), *times)
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__, allow_abbrev=False)
    parser.add_argument("--streams", type=int, default=200, help="open at once")
    parser.add_argument("--max-tokens", type=int, default=256, help="of each stream")
    parser.add_argument("--model", choices=("tiny", "demo"), default="tiny", help="tiny: random weights")
    parser.add_argument(
        "--scenarios", type=_scenarios, default=_LONG, help=f"comma-separated, of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--partition-s", type=float, default=20.0, help="how long an engine is cut off")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of the chart")
    parser.add_argument("--verbose", action="store_true", help="tell what happens to each container")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--demo-model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _scenarios(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= SCENARIOS.keys():
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(SCENARIOS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
