"""Draws a sweep's plots as inline SVG: success over one axis, a heat map of two, parallel coordinates of all."""

from typing import Any, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tap_ray.compare.plots import INK, STYLE, color, svg
from tap_ray.sweep.tables import HEADINGS, Point, TrialRow, label, points, short_names, show, without_seed

MAP = "viridis"


def varied(rows: Sequence[TrialRow]) -> list[str]:
    """Axes without the seed that have more than one value."""
    axes = list(without_seed(rows[0].values)) if rows else []
    return [axis for axis in axes if len({repr(row.values[axis]) for row in rows}) > 1]


def budget_curve(rows: Sequence[TrialRow], axis: str) -> str:
    """SVG: the three averages over one axis. Dots are seeds, whiskers the interval of their mean, bands Wilson's."""
    found = points(rows)
    order = _places(rows, axis)
    found = sorted(found, key=lambda point: order[repr(point.values[axis])][0])
    at = np.array([order[repr(point.values[axis])][0] for point in found])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (metric, kind) in enumerate(
            (("avg_all", ""), ("avg_partial", "partial"), ("avg_entire", "entire"))
        ):
            tint = color(number)
            axes.plot(at, [100 * p.mean(metric) for p in found], color=tint, label=HEADINGS[metric], marker="o", lw=1.6)
            if kind:
                low, high = (100 * np.array([p.pooled(kind)[end] for p in found]) for end in (1, 2))
                axes.fill_between(at, low, high, color=tint, alpha=0.15, lw=0)
            else:
                _seeds(axes, at, found, tint)
        ticks = sorted(order.values())
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        axes.set(ylim=(0, 104), ylabel="success, %", xlabel=short_names(list(rows[0].values))[axis])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return svg(figure)


def _seeds(axes: Axes, at: np.ndarray, found: Sequence[Point], tint: str) -> None:
    for place, point in zip(at, found, strict=True):
        values = 100 * np.array(point.each("avg_all"))
        axes.plot([place] * len(values), values, ".", color=tint, alpha=0.6, ms=7)
        if len(values) > 1:
            mean, low, high = (100 * end for end in point.over_seeds("avg_all"))
            reach = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axes.errorbar([place], [mean], reach, ecolor=INK, elinewidth=1, capsize=4, fmt="none")


def _places(rows: Sequence[TrialRow], axis: str) -> dict[str, tuple[float, str]]:
    """Position and label of each value of an axis: evenly spaced, in the order of size (or of the trials)."""
    values = {repr(row.values[axis]): row.values[axis] for row in rows}
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    keys = sorted(values, key=lambda key: values[key]) if numbers else list(values)
    return {key: (float(place), show(values[key])) for place, key in enumerate(keys)}


def heat_map(rows: Sequence[TrialRow], across: str, up: str) -> str:
    """SVG: mean Avg-All over seeds for each pair of values of two axes; cells without an evaluation are empty."""
    order = {axis: _places(rows, axis) for axis in (across, up)}
    table = np.full((len(order[up]), len(order[across])), np.nan)
    for point in points(rows):
        if "-" not in (point.values[across], point.values[up]):
            y, x = (int(order[axis][repr(point.values[axis])][0]) for axis in (up, across))
            table[y, x] = 100 * point.mean("avg_all")
    names = short_names(list(rows[0].values))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.4 + 0.55 * len(table)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.pcolormesh(table, cmap=MAP, vmin=0, vmax=max(1.0, float(np.nanmax(table, initial=0.0))))
        middle = float(np.nanmax(table, initial=0.0)) / 2
        for (y, x), value in np.ndenumerate(table):
            if np.isfinite(value):
                tint = "#ffffff" if value < middle else "#000000"
                axes.text(x + 0.5, y + 0.5, f"{value:.1f}", ha="center", va="center", color=tint)
        for axis, put in ((across, axes.set_xticks), (up, axes.set_yticks)):
            places = sorted(order[axis].values())
            put([place + 0.5 for place, _ in places], [text for _, text in places])
        axes.set(xlabel=names[across], ylabel=names[up])
        axes.grid(visible=False)
        figure.colorbar(image, label="Avg-All, %")
        return svg(figure)


def parallel_coordinates(rows: Sequence[TrialRow], scores: Mapping[str, float], heading: str) -> str:
    """SVG: for each evaluated trial a line over all axes to its score; lighter lines have higher scores."""
    evaluated = [row for row in rows if row.id in scores]
    axes_of = [axis for axis in (rows[0].values if rows else {}) if len({repr(r.values[axis]) for r in rows}) > 1]
    if len(evaluated) < 2 or not axes_of:
        return ""
    score = np.array([scores[row.id] for row in evaluated])
    columns = [_column(evaluated, axis) for axis in axes_of]
    height, ends = _scaled(score)
    names = short_names(list(rows[0].values))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        tints = matplotlib.colormaps[MAP](height * 0.9)
        for number in np.argsort(score):
            line = [*(heights[number] for heights, _ in columns), height[number]]
            axes.plot(range(len(line)), line, color=tints[number], lw=1.6, alpha=0.85)
        for place, ticks in enumerate([*(ticks for _, ticks in columns), ends]):
            axes.axvline(place, color=INK, lw=0.8)
            for y, text in ticks:
                axes.annotate(text, (place, y), xytext=(3, 0), textcoords="offset points", fontsize=7.5, va="center")
        axes.set_xticks(range(len(columns) + 1), [*(names[axis] for axis in axes_of), heading])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.grid(visible=False)
        return svg(figure)


def _column(rows: Sequence[TrialRow], axis: str) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights in [0, 1] of the trials on one axis, and its ticks. Values over a wide range are on a logarithmic
    scale."""
    values: list[Any] = [row.values[axis] for row in rows]
    if len({repr(v) for v in values}) > 6 and all(isinstance(v, (int, float)) and v > 0 for v in values):
        heights, _ = _scaled(np.log(np.array(values, float)))
        return heights, [(0.0, show(min(values))), (1.0, show(max(values)))]
    order = _places(rows, axis)
    most = max(1, len(order) - 1)
    return np.array([order[repr(v)][0] / most for v in values]), [(p / most, text) for p, text in order.values()]


def _scaled(values: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]]]:
    low, high = float(values.min()), float(values.max())
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return heights, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.5, f"{low:.3g}")]


def validation_curves(rows: Sequence[TrialRow], curves: dict[str, list[tuple[float, float]]], metric: str) -> str:
    """SVG: a metric of held-out demonstrations over steps, one line per trial; "" if there are no values."""
    if not any(curves.values()):
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number, row in enumerate(rows):
            if curve := curves.get(row.id):
                style = ".--" if row.state == "stopped" else ".-"  # a trial may have one point
                axes.plot(*zip(*curve, strict=True), style, color=color(number), lw=1.2, label=label(row.values))
        axes.set(xlabel="step of Stage 2", ylabel=metric)
        return svg(figure)
