"""The plots of docs/scaling.md: no background, and colours that are read on light and dark pages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.scaling.capacity import EngineRates, Installation, gateways_needed
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.policies import Policy
from benchmarks.scaling.studies import SIZES, STATUS_PERIODS_S
from benchmarks.scaling.tables import rates_of

_GREY = "#808080"
_COLOURS = ("#3b8ed0", "#e07b39", "#3fa45b", "#c75b9b", "#8f78d0", "#a8942a")
_SIZES = sorted({round(1.12**power) for power in range(62)} | {1000})
_LARGEST = 1000
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_STATUS_LABEL = "seconds between two statuses of an engine"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pagewire",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "axes.titlesize": 10,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
Series = tuple[str, Sequence[float], Sequence[float]]


def write_plots(results: dict[str, Any], costs: Costs, folder: Path) -> None:
    """Write all of them as SVG files."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        _write(folder / "scaling-gateways.svg", _plot_gateways(results, costs))
        _write(folder / "scaling-policies.svg", _plot_policies(results))
        _write(folder / "scaling-status.svg", _plot_status_periods(results))


def _write(path: Path, figure: Figure) -> None:
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})


def _plot_gateways(results: dict[str, Any], costs: Costs) -> Figure:
    """How many gateways each engine needs, by what gateways know."""
    figure = Figure(figsize=(9, 3.4))
    kinds = (
        ("every gateway knows all engines and their caches", True, None),
        ("all engines, no caches", False, None),
        ("16 engines and their caches", True, 16),
    )
    for axes, rates in zip(figure.subplots(1, 3, sharey=True), rates_of(results), strict=True):
        series = [
            (name, *_gateways_per_engine(rates, costs, watches_cache, subset)) for name, watches_cache, subset in kinds
        ]
        _draw(
            axes, series, rates.name, "engines", "gateways per engine" if axes.get_subplotspec().is_first_col() else ""
        )
        _scale(axes, (1, 10, 100, 1000))
        _scale(axes, (0.5, 1, 2, 5, 10, 20, 50), y=True)
        axes.set(xlim=(1, _LARGEST), ylim=(0.4, 60))
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.14))
    return figure


def _gateways_per_engine(
    rates: EngineRates, costs: Costs, watches_cache: bool, subset: int | None
) -> tuple[list[float], list[float]]:
    sizes, needed = [], []
    for size in _SIZES:
        count = gateways_needed(Installation(size, 1, watches_cache, 1.0, subset), rates, costs)
        if count is not None and size <= _LARGEST:
            sizes.append(float(size))
            needed.append(count / size)
    return sizes, needed


def _plot_policies(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    _draw(
        left,
        _by_policy(results, "size", lambda run: (run["config"]["num_engines"], run["outcome"]["first_token_p99_s"])),
        "99 of 100 have their first token after",
        "engines (half as many gateways)",
        "seconds",
    )
    _scale(left, SIZES)
    _scale(left, _SECONDS, y=True)
    _draw(
        right,
        _by_policy(results, "size", lambda run: (run["config"]["num_engines"], 100 * run["outcome"]["cached_share"])),
        "tokens of prompts that were cached",
        "engines",
        "%",
    )
    _scale(right, SIZES)
    right.set(ylim=(0, 100))
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.2))
    figure.tight_layout()
    return figure


def _plot_status_periods(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2)
    waits = _by_policy(
        results, "status period", lambda run: (run["config"]["status_period_s"], run["outcome"]["first_token_p99_s"])
    )
    spreads = _by_policy(
        results, "status period", lambda run: (run["config"]["status_period_s"], run["outcome"]["spread"])
    )
    _draw(left, waits, "99 of 100 have their first token after", _STATUS_LABEL, "seconds")
    _draw(right, spreads, "open streams of an engine: deviation over mean", _STATUS_LABEL, "")
    for axes in (left, right):
        _scale(axes, STATUS_PERIODS_S)
    _scale(left, _SECONDS, y=True)
    right.set(ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.1))
    figure.tight_layout()
    return figure


def _by_policy(
    results: dict[str, Any], study: str, point: Callable[[dict[str, Any]], tuple[float, float]]
) -> list[Series]:
    """A line for each policy that the study has."""
    series: list[Series] = []
    for policy in Policy:
        points = sorted(
            point(run) for run in results["fleets"] if run["study"] == study and run["config"]["policy"] == policy
        )
        if points:
            series.append((str(policy), [x for x, _ in points], [y for _, y in points]))
    return series


def _draw(axes: Axes, series: Sequence[Series], title: str, x_label: str, y_label: str) -> None:
    for (name, xs, ys), colour in zip(series, _COLOURS, strict=False):
        axes.plot(xs, ys, label=name, color=colour, marker="o" if len(xs) < 10 else None, markersize=4)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)


def _scale(axes: Axes, ticks: Sequence[float], *, y: bool = False) -> None:
    """A logarithmic axis with these numbers, as they are written elsewhere."""
    axis = axes.yaxis if y else axes.xaxis
    (axes.set_yscale if y else axes.set_xscale)("log")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())
