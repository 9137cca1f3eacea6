"""Draws a study's curves as a small PNG: success over the budget of play, and over demonstrations."""

from pathlib import Path
from typing import Any, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tap_ray.compare.plots import STYLE, color
from tap_ray.sweep.study import Outcomes, is_scratch
from tap_ray.sweep.tables import BUDGET, DEMOS, label

HEADINGS = {BUDGET: "episodes of play", DEMOS: "demonstrations a task"}
DPI = 110
INKS = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
PRINTED: dict[Any, Any] = dict.fromkeys(INKS, "#222222") | {"grid.color": "#dddddd"}
"""Fixed colors instead of the page's CSS variables, which an image cannot use."""


def draw(path: Path, points: Sequence[Outcomes]) -> bool:
    """Write the curves over those of `HEADINGS` that are varied; returns whether there was any.

    Args:
        path: the PNG file.
        points: the points of one scenario.
    """
    axes_of = [axis for axis in HEADINGS if len({point.values.get(axis) for point in points}) > 1]
    # Scratch and one budget of play make no curve.
    axes_of = [axis for axis in axes_of if axis != BUDGET or len({p.values[BUDGET] for p in points} - {0}) > 1]
    if not axes_of:
        return False
    with matplotlib.rc_context(STYLE | PRINTED):
        figure = Figure(figsize=(4.6 * len(axes_of), 3.6), dpi=DPI, layout="constrained")
        for place, axis in enumerate(axes_of):
            panel = figure.add_subplot(1, len(axes_of), place + 1)
            _curves(panel, points, axis)
        figure.savefig(path, format="png", metadata={"Software": None})
    return True


def _curves(panel: Axes, points: Sequence[Outcomes], axis: str) -> None:
    """A line for each set of values of the other axes, with 95 % intervals; one that has no budget lies across all."""
    lines: dict[str, list[Outcomes]] = {}
    for point in points:
        lines.setdefault(label(_others(point, axis)), []).append(point)
    ticks = sorted({point.values[axis] for point in points})
    panel.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    for number, (name, line) in enumerate(lines.items()):
        line = sorted(line, key=lambda point: point.values[axis])
        spans = [[100 * end for end in point.interval("avg_all")] for point in line]
        tint, means = color(number), [span[0] for span in spans]
        if axis == BUDGET and len(line) == 1 and is_scratch(line[0]):
            panel.axhline(means[0], color=tint, ls="--", lw=1.4, label=name)
            panel.axhspan(spans[0][1], spans[0][2], color=tint, alpha=0.1, lw=0)
            continue
        at = [ticks.index(point.values[axis]) + 0.04 * number for point in line]
        reach = [[mean - span[1] for mean, span in zip(means, spans, strict=True)],
                 [span[2] - mean for mean, span in zip(means, spans, strict=True)]]  # fmt: skip
        reach = [[max(0.0, part) for part in side] for side in reach]
        panel.errorbar(at, means, reach, color=tint, marker="o", ms=4, lw=1.6, elinewidth=1, capsize=3, label=name)
    panel.set(xlabel=HEADINGS[axis], ylabel="Avg-All, %", ylim=(0, None))
    panel.legend(fontsize=7)


def _others(point: Outcomes, axis: str) -> dict[str, Any]:
    """The label of a line: the other axes, without the budget 0 of every scratch arm."""
    return {name: v for name, v in point.values.items() if name != axis and not (name == BUDGET and v == 0)}
