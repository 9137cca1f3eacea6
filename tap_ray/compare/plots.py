"""Plots as inline SVG that use the page's colors, so that one file works in light and dark mode."""

import io
import re
from typing import Any, Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tap_ray.compare.failures import Failures, words
from tap_ray.compare.reading import KINDS, Curves, Result
from tap_ray.compare.tables import short
from tap_ray.media.image import COLORS
from tap_ray.metrics import Interval

TINTS = {
    "dropped": "#f2b36b",
    "misplaced": "#e08a2c",
    "missed_grasp": "#b9651a",
    "timed_out": "#8a5a3b",
    "never_reached": "#3b82c4",
    "wrong_object": "#7ab3e0",
    "crashed": "#c4534f",
}
"""Colors of the failure labels: browns for execution failures, blues for semantic ones."""
INK, GRID = "#010203", "#010204"
"""Placeholder colors, which become CSS variables in the SVG."""
SHOWN = ("loss", "r2", "accuracy", "error", "direction")
"""Learning curves are drawn for metrics with one of these words; the rest (speeds, rates, norms) is in MLflow."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tap_ray",
    "text.parse_math": False,  # a "$" in a run's name is a dollar
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def color(index: int) -> str:
    """Color of the n-th run."""
    return COLORS[index % len(COLORS)]


def success_bars(results: Sequence[Result], scenario: str) -> str:
    """SVG: partial (above) and entire (below) per task with Wilson intervals, a color for each run."""
    tasks = list(results[0].tasks)
    names = [*(short(task) for task in tasks), "average"]

    def values(result: Result, kind: str) -> list[Interval]:
        return [*(result.score(task, scenario, kind) for task in tasks), result.average(scenario, kind)]

    return _bars(results, names, values)


def robustness_bars(results: Sequence[Result]) -> str:
    """SVG: averages over tasks in each scenario with Wilson intervals."""
    scenarios = results[0].scenarios
    return _bars(results, scenarios, lambda result, kind: [result.average(scenario, kind) for scenario in scenarios])


def _bars(results: Sequence[Result], names: Sequence[str], values: Callable[[Result, str], list[Interval]]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
        for row, kind in enumerate(KINDS):
            axes = figure.add_subplot(2, 1, row + 1)
            for index, result in enumerate(results):
                _bar(axes, [*values(result, kind)], index, len(results), result.label)
            axes.set(ylim=(0, 104), ylabel=f"{kind} success, %")
            axes.set_xticks(range(len(names)), names if row == 1 else [])
            axes.grid(axis="x", visible=False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(results)))
        return svg(figure)


def _bar(axes: Axes, intervals: list[Interval], index: int, count: int, label: str) -> None:
    width = 0.8 / count
    rate, low, high = (100 * np.array(column) for column in zip(*intervals, strict=True))
    at = np.arange(len(intervals)) + (index - (count - 1) / 2) * width
    # Rounding may put a rate slightly outside its own interval, which matplotlib refuses.
    reach = np.maximum(0.0, [rate - low, high - rate])
    axes.bar(at, rate, width * 0.92, color=color(index), label=label, alpha=0.85)
    axes.errorbar(at, rate, reach, fmt="none", ecolor=INK, elinewidth=1, capsize=min(4.0, 16 * width))


def failure_bars(rows: Sequence[Failures], labels: Sequence[str], failure_class: Mapping[str, str]) -> str:
    """SVG: one bar per run, stacked by failure label over all its episodes; the rest of the bar is successes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.3 + 0.34 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        left = np.zeros(len(rows))
        for label in labels:
            share = np.array([100 * row.count.get(label, 0) / row.num_episodes for row in rows])
            kind = failure_class.get(label)
            name = words(label) + (f" ({kind})" if kind else "")
            axes.barh(range(len(rows)), share, 0.7, left=left, color=TINTS.get(label, "#7f8c8d"), label=name)
            left += share
        axes.set(xlim=(0, 100), xlabel="episodes, %")
        axes.set_yticks(range(len(rows)), [_shortened(row.name) for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return svg(figure)


def _shortened(name: str, most: int = 32) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def learning_curves(curves: Sequence[Curves], labels: Sequence[str]) -> str:
    """SVG: a small plot for each loss, R^2 or accuracy, a line for each run; "" if there is nothing to draw.

    Args:
        curves: training runs.
        labels: labels of the evaluated runs, so that a policy and its training run share a color.
    """
    order = [*labels, *(c.label for c in curves if c.label not in labels)]
    names = sorted({name for c in curves for name in c.points["metric"] if any(word in name for word in SHOWN)})
    if not names:
        return ""
    num_columns = min(3, len(names))
    num_rows = -(-len(names) // num_columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.5 + 2.1 * num_rows), layout="constrained")
        for number, name in enumerate(names):
            axes = figure.add_subplot(num_rows, num_columns, number + 1)
            for c in curves:
                _line(axes, c, name, color(order.index(c.label)))
            axes.set_title(name, fontsize=9)
            axes.margins(x=0.02)
            _log_if_wide(axes, name)
        handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(4, len(handles)))
        figure.supxlabel("step", fontsize=9)
        return svg(figure)


def _line(axes: Axes, curves: Curves, name: str, tint: str) -> None:
    points = curves.points[curves.points["metric"] == name]
    if len(points):
        marker = "o" if len(points) < 3 else ""
        axes.plot(points["step"], points["value"], color=tint, label=curves.label, lw=1.4, marker=marker, ms=3)


def _log_if_wide(axes: Axes, name: str) -> None:
    """Losses that fall by more than a factor of 20 are read on a logarithmic scale."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    values = values[np.isfinite(values)]
    if "loss" in name and len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")


def svg(figure: Figure) -> str:
    """A figure as SVG to embed in an HTML page: without URLs and unused ids, and with colors as CSS variables."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*"([^>]*?) (?:height|width)="[^"]*"', r"\1\2", text)
    return text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)").replace("<svg", '<svg role="img"', 1)
