"""Draws the figures of benchmarks.routing as SVG: a row of bars for each workload, a column for each question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _LABEL, _BAR, _STEP, _TOP, _ROW_GAP = 960, 150, 66, 15, 22, 92, 46
_COLORS = {"one engine": "#9aa5b1", "prefix": "#1f6feb", "round-robin": "#d29922", "random": "#cf6a4c"}
_TEXT, _FAINT = "#24292f", "#57606a"
_TITLES = {"chat": "Multi-turn chat", "shared": "Shared instructions"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What is drawn of one workload under one policy. `imbalance`: the busiest engine's load over the mean."""

    workload: str
    routing: str
    hit_rate: float
    imbalance: float
    ttft_p99_ms: float


@dataclass(frozen=True, slots=True)
class _Column:
    """One question: what a bar's length is, what stands beside it, and where a line marks a goal."""

    title: str
    note: str
    value: Callable[[Figures], float]
    label: Callable[[Figures], str]
    goal: Callable[[Sequence[Figures]], float] | None = None


_COLUMNS = (
    _Column(
        "Prompt tokens found in a cache",
        "line: 90 % of what one engine finds",
        lambda figures: figures.hit_rate,
        lambda figures: f"{figures.hit_rate:.0%}",
        lambda row: 0.9 * row[0].hit_rate,
    ),
    _Column(
        "Busiest engine over the mean",
        "bars begin at 1, which is even; line: 1.3",
        lambda figures: figures.imbalance - 1,
        lambda figures: f"{figures.imbalance:.2f}",
        lambda row: 0.3,
    ),
    _Column(
        "Time to the first token",
        "99th percentile; one engine: as fast as three",
        lambda figures: figures.ttft_p99_ms,
        lambda figures: f"{figures.ttft_p99_ms:,.0f} ms",
    ),
)


def draw(figures: Sequence[Figures]) -> str:
    """An SVG picture. The first figures of each workload are those of one engine."""
    rows = [[each for each in figures if each.workload == name] for name in dict.fromkeys(f.workload for f in figures)]
    parts, y = [_text(16, 28, "Routing over three engines", 17, _TEXT, weight=600)], _TOP
    width = (_WIDTH - _LEFT) / len(_COLUMNS)
    scales = [(width - _LABEL) / _longest(column, rows) for column in _COLUMNS]
    for index, column in enumerate(_COLUMNS):
        parts.append(_text(_LEFT + index * width, 56, column.title, 12, _TEXT, weight=600))
        parts.append(_text(_LEFT + index * width, 72, column.note, 11, _FAINT))
    for row in rows:
        parts.append(_text(16, y, _TITLES.get(row[0].workload, row[0].workload), 13, _TEXT, weight=600))
        for index, column in enumerate(_COLUMNS):
            parts += _draw_column(column, row, _LEFT + index * width, y + 10, scales[index])
        for index, each in enumerate(row):
            parts.append(_text(_LEFT - 10, y + 22 + index * _STEP, each.routing, 12, _TEXT, anchor="end"))
        y += len(row) * _STEP + _ROW_GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y - 16}" width="{_WIDTH}" '
        f'font-family="system-ui, sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _longest(column: _Column, rows: Sequence[Sequence[Figures]]) -> float:
    goals = [column.goal(row) for row in rows if column.goal is not None]
    return max([column.value(each) for row in rows for each in row] + goals)


def _draw_column(column: _Column, row: Sequence[Figures], x: float, y: float, scale: float) -> list[str]:
    parts = []
    for index, each in enumerate(row):
        length, top = column.value(each) * scale, y + index * _STEP
        color = _COLORS.get(each.routing, _FAINT)
        parts.append(f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{color}"/>')
        parts.append(_text(x + length + 6, top + 12, column.label(each), 12, _TEXT))
    if column.goal is not None:
        goal = x + column.goal(row) * scale
        end = y + len(row) * _STEP - 3
        parts.append(
            f'<line x1="{goal:.1f}" y1="{y - 4}" x2="{goal:.1f}" y2="{end}" stroke="{_TEXT}" stroke-dasharray="3 3"/>'
        )
    return parts


def _text(x: float, y: float, text: str, size: int, color: str, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
