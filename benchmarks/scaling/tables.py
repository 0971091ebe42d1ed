"""What was simulated, as tables in Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.scaling.capacity import (
    EngineRates,
    Installation,
    cache_event_bytes_per_s,
    dns_answer_bytes,
    first_breaks,
    gateway_cores,
    gateway_memory_bytes,
    gateways_needed,
    scheduler_cores,
)
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.step_time import MEASURED, fit, relative_errors

_FLEET_SIZES = (1, 16, 64, 256, 1000)
_SERVICE_NAME = "llm-pagewire-engine.llm.svc.cluster.local"
_DNS_SIZES = (16, 27, 72, 1000, 4000)
_STUDIES = {
    "size": ("num_engines", "policy"),
    "status period": ("policy", "status_period_s"),
    "event lag": ("events_lag_s",),
    "subset": ("engines_per_gateway", "users_stay"),
    "million": ("num_engines", "num_gateways"),
}
_OUTCOMES = {
    "tokens_per_s": "tok/s",
    "mean_open": "open",
    "cached_share": "cached",
    "first_token_p50_s": "first p50 s",
    "first_token_p99_s": "first p99 s",
    "token_p99_s": "token p99 s",
    "request_mean_s": "request s",
    "imbalance": "fullest/mean",
    "spread": "spread",
    "gateway_tokens_most_over_mean": "busiest gateway/mean",
}


def report(results: dict[str, Any], costs: Costs) -> Iterator[str]:
    """All tables, line by line."""
    yield from _section("Steps of one H100, measured and fitted", results["fit"])
    yield from _section("Throughput through the whole stack, measured and simulated", results["validation"])
    agreement = [
        {"load": row["name"], "figure": figure, "detailed": detailed, "server": row["server"][figure]}
        for row in results["agreement"]
        for figure, detailed in row["detailed"].items()
    ]
    yield from _section("An engine in detail, and as a server", agreement)
    for study, columns in _STUDIES.items():
        rows = [
            {
                **{name: run["config"][name] for name in columns},
                **{name: run["outcome"][key] for key, name in _OUTCOMES.items()},
            }
            for run in results["fleets"]
            if run["study"] == study
        ]
        yield from _section(f"Fleets: {study}", rows)
    for rates in rates_of(results):
        yield from _section(f"What is used up first: {rates.name}", _break_rows(rates, costs))
        yield from _section(f"Gateways for each engine: {rates.name}", _gateway_rows(rates, costs))
        yield from _section(f"One of 1,000 gateways and engines: {rates.name}", _thousand_rows(rates, costs))
    answers = [{"engines": size, "bytes": dns_answer_bytes(_SERVICE_NAME, size)} for size in _DNS_SIZES]
    yield from _section("The DNS answer", answers)


def rates_of(results: dict[str, Any]) -> list[EngineRates]:
    """The loads that fleets are planned for."""
    return [EngineRates(**{key: value for key, value in row.items() if key != "order"}) for row in results["rates"]]


def fit_rows() -> list[dict[str, Any]]:
    """The measured steps, and by how much the fitted model is off."""
    return [
        {
            "shape": point.shape.name,
            "decodes": point.step.num_decodes,
            "tokens of prompts": point.step.num_prompt_tokens,
            "measured ms": 1e3 * point.seconds,
            "error %": 100 * error,
        }
        for point, error in zip(MEASURED, relative_errors(fit()), strict=True)
    ]


def _break_rows(rates: EngineRates, costs: Costs) -> list[dict[str, Any]]:
    return [
        {"what": each.what, "engines": each.num_engines or "more than 5,000", "then": each.figure}
        for each in first_breaks(rates, costs)
    ]


def _gateway_rows(rates: EngineRates, costs: Costs) -> list[dict[str, Any]]:
    rows = []
    for size in _FLEET_SIZES:
        row: dict[str, Any] = {"engines": size}
        for name, watches_cache, per_write, subset in (
            ("all, caches", True, 1.0, None),
            ("all, no caches", False, 1.0, None),
            ("16, caches", True, 1.0, 16),
            ("all, no caches, 8 tokens a write", False, 8.0, None),
        ):
            needed = gateways_needed(Installation(size, 1, watches_cache, per_write, subset), rates, costs)
            row[name] = "none is enough" if needed is None else needed / size
        rows.append(row)
    return rows


def _thousand_rows(rates: EngineRates, costs: Costs) -> list[dict[str, Any]]:
    at = Installation(1000, 1000)
    rows = [{"of": "gateway", "what": name, "used": used} for name, used in gateway_cores(at, rates, costs).items()]
    rows += [
        {"of": "scheduler", "what": name, "used": used} for name, used in scheduler_cores(at, rates, costs).items()
    ]
    rows.append({"of": "gateway", "what": "memory, GiB", "used": gateway_memory_bytes(at, rates, costs) / (1 << 30)})
    megabytes = cache_event_bytes_per_s(at, rates, costs) / 1e6
    rows.append({"of": "gateway", "what": "cache events, MB/s", "used": megabytes})
    return rows


def _section(title: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    names = [name for name in rows[0] if name != "order"]
    yield f"\n## {title}\n"
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(_cell(row[name]) for name in names) + " |"


def _cell(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
