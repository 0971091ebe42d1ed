"""Simulates fleets of up to 1,000 engines with a million open streams, and prints what docs/scaling.md says.

python -m benchmarks.scaling                    all of it
python -m benchmarks.scaling --largest 64       smaller fleets only
python -m benchmarks.scaling.measure            what single parts cost, on this machine
"""

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.scaling import tables
from benchmarks.scaling.agreement import CASES, Case, Figures, detailed_figures, engine_rates, server_figures
from benchmarks.scaling.capacity import EngineRates
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.fleet import Fleet, FleetConfig, FleetOutcome
from benchmarks.scaling.server import StepCosts
from benchmarks.scaling.step_time import fit
from benchmarks.scaling.studies import SIZES, FleetJob, fleet_jobs
from benchmarks.scaling.validation import MEASURED_RUNS, simulated_run

Result = dict[str, Any]
_DETAIL_WEIGHT = 1e5


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="engines of the largest fleet")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="that simulate at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the plots there; needs matplotlib")
    flags = parser.parse_args()
    results = simulate(fleet_jobs(flags.largest), flags.processes)
    for line in tables.report(results, Costs.read()):
        print(line)
    if flags.json is not None:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")
    if flags.plots is not None:
        # matplotlib is wanted for this alone.
        from benchmarks.scaling.plots import write_plots  # noqa: PLC0415

        write_plots(results, Costs.read(), flags.plots)


def simulate(jobs: list[FleetJob], num_processes: int) -> Result:
    """Run everything, with a progress bar; what comes of it can be written as JSON."""
    results: Result = {"fit": tables.fit_rows(), "validation": [], "agreement": [], "rates": [], "fleets": []}
    with Progress() as progress, ProcessPoolExecutor(num_processes) as pool:
        steps: list[tuple[float, Callable[..., tuple[str, Result]], tuple[Any, ...]]] = [
            *((job.weight, _run_fleet, (job,)) for job in jobs),
            *((_DETAIL_WEIGHT, _run_validation, (number,)) for number in range(len(MEASURED_RUNS))),
            *((_DETAIL_WEIGHT, _run_agreement, (case,)) for case in CASES),
            *((_DETAIL_WEIGHT, _run_rates, (case,)) for case in CASES if case.is_planned_for),
        ]
        task = progress.add_task("simulating", total=sum(weight for weight, _, _ in steps))
        futures = {pool.submit(run, *arguments): weight for weight, run, arguments in steps}
        for future in as_completed(futures):
            kind, result = future.result()
            results[kind].append(result)
            progress.advance(task, futures[future])
    for kind in ("validation", "agreement", "rates", "fleets"):
        results[kind].sort(key=lambda result: result["order"])
    return results


def _run_fleet(job: FleetJob) -> tuple[str, Result]:
    costs = Costs.read()
    host_s = costs.scheduler_step_us / 1e6
    step_costs = StepCosts.of(fit(), job.config.size.shape, host_s, costs.scheduler_sequence_us / 1e6)
    outcome: FleetOutcome = Fleet(job.config, step_costs).run()
    return "fleets", {
        "order": [job.study, job.config.policy, job.config.num_engines, str(job.config)],
        "study": job.study,
        "config": _plain(job.config),
        "outcome": asdict(outcome),
    }


def _plain(config: FleetConfig) -> Result:
    plain = asdict(config)
    plain["size"] = config.size.shape.name
    del plain["habits"]
    return plain


def _run_validation(number: int) -> tuple[str, Result]:
    run = MEASURED_RUNS[number]
    return "validation", {
        "order": number,
        "name": run.name,
        "measured": run.tokens_per_s,
        "simulated": simulated_run(run, fit()),
    }


def _run_agreement(case: Case) -> tuple[str, Result]:
    model = fit()
    detailed: Figures = detailed_figures(model, case)
    return "agreement", {
        "order": CASES.index(case),
        "name": case.name,
        "detailed": asdict(detailed),
        "server": asdict(server_figures(model, case)),
    }


def _run_rates(case: Case) -> tuple[str, Result]:
    rates: EngineRates = engine_rates(fit(), case)
    return "rates", {"order": CASES.index(case), **asdict(rates)}


if __name__ == "__main__":
    main()
