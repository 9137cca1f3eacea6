"""Writes the report of a dry run: the numbers in tap_ray's units, instructions, frames, and what looks wrong."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tap_ray.importing.checks import Numeric, ee_speed, intervals_s, read
from tap_ray.importing.convert import columns_of, motion, sentence_of, square
from tap_ray.importing.mapping import Mapping, slots_of, spec_of
from tap_ray.importing.source import Source
from tap_ray.media.text_table import columns
from tap_ray.specs import ONE_CAMERA, RobotSpec

FRAMES = 6
"""Number of images of each episode in the report's image."""


def ranges(mapping: Mapping, source: Source, episodes: Iterable[int]) -> dict[str, tuple[float, float]]:
    """Slot -> smallest and largest number, in our units."""
    names = [slot for group in (*mapping.state, *mapping.action) for slot in group.slots]
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for episode in episodes:
        rows = np.concatenate(motion(mapping, source, episode)[:2], axis=1)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    return {name: (float(a), float(max(b, a + 1e-6))) for name, a, b in zip(names, low, high, strict=True)}


def describe(mapping: Mapping, source: Source, episodes: list[int], like: RobotSpec | None = None) -> str:
    """A table of the slots, and the instructions of some episodes; `like` is the robot of --like, whose slots are
    used."""
    seen = read(mapping, source, episodes)
    fps = mapping.fps or source.fps
    lines = [
        f"{source.num_episodes} episodes; of {len(episodes)} of them {len(seen.state)} control steps at "
        f"{mapping.control_hz:g} Hz, from {fps:g} frames per second; "
        + "; ".join(_camera(source, name, camera) for name, camera in mapping.camera_of.items())
        + ".",
        "",
    ]
    table = [["", "slot", "unit", "minimum", "5 %", "median", "95 %", "maximum"]]
    spec = spec_of(mapping, ranges(mapping, source, episodes))
    for role, slots, rows in (("state", spec.state, seen.state), ("action", spec.action, seen.action)):
        for slot, column in zip(slots, rows.T, strict=True):
            numbers = np.quantile(column, [0, 0.05, 0.5, 0.95, 1])
            table.append([role, slot.name, slot.unit, *(f"{number:.4g}" for number in numbers)])
    lines += [*columns(table, left=3), "", _rate(mapping, source, seen, episodes)]
    sentences = dict.fromkeys(sentence_of(mapping, source, episode) for episode in episodes)
    lines += ["", "instructions: " + "; ".join(repr(each) for each in list(sentences)[:5])]
    if like is not None:
        known = {slot.name for slot in (*like.state, *like.action)}
        out = [name for name in (*slots_of(mapping.state), *slots_of(mapping.action)) if name not in known]
        lines += [f"omitted, because --like does not have these slots: {', '.join(out)}"] if out else []
    return "\n".join(lines)


def _camera(source: Source, name: str, camera: str) -> str:
    """One camera and its size, with our name for it if that is not the default one."""
    size = " x ".join(map(str, reversed(source.cameras[camera])))
    return f"camera {camera} {size} px" + (f" as {name}" if name != ONE_CAMERA[0] else "")


def _rate(mapping: Mapping, source: Source, seen: Numeric, episodes: list[int]) -> str:
    """Where the frames per second come from, and the resulting speed of the end effector."""
    raw = [source.numbers(episode, columns_of(mapping)) for episode in episodes[:3]]
    origin = (
        "confirmed by its time stamps" if len(intervals_s(raw)) else
        "no time stamps; taken from its metadata or its authors" if source.fps else
        "taken from the mapping alone: without time stamps they cannot be checked"
    )  # fmt: skip
    line = f"frames per second: {mapping.fps or source.fps:g} ({origin})"
    speed = ee_speed(mapping, seen)
    if not len(speed):
        return line
    middle, most = np.quantile(speed, [0.5, 0.95])
    return (
        f"{line}; so the end effector moves at {middle:.2g} m/s (median), 95 % of the time at less than {most:.2g} m/s"
    )


def draw_figure(mapping: Mapping, source: Source, episodes: list[int], file: Path) -> None:
    """An image with frames of some episodes, as they will be stored, above their actions."""
    figure, axes = plt.subplots(2 * len(episodes), 1, figsize=(2 * FRAMES, 3.6 * len(episodes)), squeeze=False)
    for number, episode in enumerate(episodes):
        _, action, frames = motion(mapping, source, episode)
        steps = np.linspace(0, len(action) - 1, FRAMES).astype(int)
        shown = [int(frames[step]) for step in np.unique(steps)]
        strips = [
            np.concatenate([square(mapping, rgb) for rgb in source.images(episode, camera, shown)], axis=1)
            for camera in mapping.camera_of.values()
        ]
        above, below = axes[2 * number, 0], axes[2 * number + 1, 0]
        above.imshow(np.concatenate(strips))
        above.set_title(f"episode {episode}: {sentence_of(mapping, source, episode)}", fontsize=9)
        above.axis("off")
        names = [slot for group in mapping.action for slot in group.slots]
        for name, column in zip(names, action.T, strict=True):
            below.plot(np.arange(len(column)) / mapping.control_hz, column, label=name, linewidth=1)
        below.set_xlabel("s")
        if names:
            below.legend(fontsize=7, ncols=7)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    plt.close(figure)
