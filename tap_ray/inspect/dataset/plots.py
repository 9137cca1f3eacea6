"""Draws the plots of an inspection's page, as SVG in the page's colors."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tap_ray.compare.plots import INK, STYLE, color, svg
from tap_ray.dataset.layout import ACTION, STATE
from tap_ray.inspect.dataset.frames import Frames
from tap_ray.inspect.dataset.survey import LAGS, Survey
from tap_ray.play.report import LEAF_M


def drawn(survey: Survey, frames: Frames) -> dict[str, tuple[str, str]]:
    """Name of a check -> SVG, and its caption."""
    made = {
        "smoothness": _smoothness(survey),
        "consistency": _lags(survey),
        "saturation": _at_bounds(survey),
        "gripper": _grippers(survey),
        "idle": _idle(survey),
        "coverage": _coverage(survey),
        "contact": _contact(survey),
        "images": _images(frames),
        "episodes that stand out": _lengths(survey),
    }
    return {name: each for name, each in made.items() if each[0]}


def _histogram(values: Sequence[float], label: str, ends: tuple[float, float] | None = None) -> str:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(finite, bins=25, range=ends, color=color(0))
        axes.set(xlabel=label, ylabel="episodes")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        return svg(figure)


def _smoothness(survey: Survey) -> tuple[str, str]:
    values = [each.sparc for each in survey.episodes]
    drawn = _histogram(values, "SPARC of the end effector's speed (0: smoothest)")
    return drawn, "Smoothness of the end effector's motion in each episode."


def _idle(survey: Survey) -> tuple[str, str]:
    values = [100 * each.idle / each.steps for each in survey.episodes]
    return _histogram(values, "idle steps of an episode, %", (0, 100)), "Share of idle steps in each episode."


def _contact(survey: Survey) -> tuple[str, str]:
    values = [100 * each.contact / each.steps for each in survey.episodes]
    if not any(values):
        return "", ""
    return _histogram(
        values, "steps of an episode in contact, %", (0, 100)
    ), "Share of steps in contact in each episode."


def _lengths(survey: Survey) -> tuple[str, str]:
    hz = survey.spec.control_hz
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(
            [each.steps / hz for each in survey.episodes],
            [each.speed for each in survey.episodes],
            s=12,
            color=color(0),
            alpha=0.6,
            linewidths=0,
        )
        axes.set(xlabel="length, s", ylabel="mean speed, m/s or rad/s")
        return svg(figure), "Length and mean speed of each episode."


def _lags(survey: Survey) -> tuple[str, str]:
    table = survey.lags.r_squared()
    if not np.isfinite(table).any():
        return "", ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for column, name in enumerate(survey.lags.slots):
            axes.plot(list(LAGS), table[:, column], "o-", ms=3, lw=1.4, color=color(column), label=name)
        axes.set(xlabel="steps by which the state comes after the action", ylabel="R²", ylim=(-0.03, 1.05))
        _beside(axes)
        text = (
            "Share of the state's change that an action explains, by lag. It should be largest at 0, or shortly after."
        )
        return svg(figure), text


def _at_bounds(survey: Survey) -> tuple[str, str]:
    names = [slot.name for slot in survey.spec.action]
    if not names:
        return "", ""
    stats = survey.dataset.stats[ACTION]
    low, high = (np.array([getattr(slot, end) for slot in survey.spec.action]) for end in ("low", "high"))
    parts = {key: (stats[key].reshape(-1) - low) / (high - low) for key in ("min", "q01", "q50", "q99", "max")}
    text = "Each action within its range: line from minimum to maximum, bar from 1 to 99 %, tick at the median."
    return _ranges(names, parts), text


def _ranges(names: Sequence[str], parts: dict[str, np.ndarray]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.7 + 0.24 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        for row in range(len(names)):
            axes.plot([parts["min"][row], parts["max"][row]], [row, row], color=color(0), lw=1.2)
            axes.plot([parts["q01"][row], parts["q99"][row]], [row, row], color=color(0), lw=6, solid_capstyle="butt")
            axes.plot(parts["q50"][row], row, "|", color=INK, ms=11, mew=1.6)
        axes.set(xlim=(-0.03, 1.03))
        axes.set_xticks([0, 0.5, 1], ["lowest", "", "highest"])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        return svg(figure)


def _grippers(survey: Survey) -> tuple[str, str]:
    if not survey.spec.grippers:
        return "", ""
    closed = [100 * sum(g.closed for g in each.grippers) / each.steps / len(each.grippers) for each in survey.episodes]
    changes = [float(sum(g.changes for g in each.grippers)) for each in survey.episodes]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 2.2), layout="constrained")
        first, second = figure.subplots(1, 2)
        first.hist(closed, bins=20, range=(0, 100), color=color(0))
        first.set(xlabel="steps closed, %", ylabel="episodes")
        second.hist(changes, bins=np.arange(0, max(changes) + 2) - 0.5 if max(changes) < 30 else 24, color=color(1))
        second.set(xlabel="opens or closes, times")
        return svg(figure), "How long the gripper is closed in each episode, and how often it opens or closes."


def _coverage(survey: Survey) -> tuple[str, str]:
    if not survey.spec.state:
        return "", ""
    if not survey.voxels:
        stats = survey.dataset.stats[STATE]
        low, high = stats["min"].reshape(-1), stats["max"].reshape(-1)
        width = np.where(high > low, high - low, 1)
        parts = {key: (stats[key].reshape(-1) - low) / width for key in ("min", "q01", "q50", "q99", "max")}
        names = [
            f"{slot.name}, {a:.3g} to {b:.3g} {slot.unit.split()[0]}"
            for slot, a, b in zip(survey.spec.state, low, high, strict=True)
        ]
        return _ranges(names, parts), "Each number of the state: bar from 1 to 99 %, tick at the median."
    cells = np.array(list(survey.voxels))
    counts = np.array(list(survey.voxels.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        for axes, (a, b) in zip(figure.subplots(1, 2), ((0, 1), (0, 2)), strict=True):
            low, high = cells.min(axis=0), cells.max(axis=0)
            grid = np.zeros((high[a] - low[a] + 1, high[b] - low[b] + 1))
            np.add.at(grid, (cells[:, a] - low[a], cells[:, b] - low[b]), counts)
            shown = np.ma.masked_equal(grid, 0)
            ends = [LEAF_M * (low[a]), LEAF_M * (high[a] + 1), LEAF_M * low[b], LEAF_M * (high[b] + 1)]
            axes.imshow(shown.T, origin="lower", extent=ends, norm="log", cmap="viridis", aspect="equal")
            axes.grid(visible=False)
            axes.set(xlabel=f"{'xyz'[a]}, m", ylabel=f"{'xyz'[b]}, m")
        return svg(figure), "Positions of the end effector, from above and from the side; brighter is more frequent."


def _images(frames: Frames) -> tuple[str, str]:
    values, label = [float(each.look.mean()) for each in frames.episodes], "brightness of the first image, 0 to 255"
    return _histogram(values, label, (0, 255)), "Brightness of the first image of each episode."


def _beside(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
