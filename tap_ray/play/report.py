"""Writes a report on play: movement quality, diversity, contact and effect for each explorer, as tables and images.

Its files, in the report/ folder: report.md, play.csv, play.json, play.png, workspace.png, contact_sheet.png, play.mp4;
with robot masks also crops.png.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tap_ray import metrics, storage
from tap_ray.dataset.crop_files import cut_masked
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.layout import image_columns
from tap_ray.dataset.lerobot import CONTACT, MASK, OBJECT_POSE, STATE, DatasetInfo, open_dataset, read_episode
from tap_ray.errors import DataError
from tap_ray.media.image import COLORS, decode_frames, enlarged, panel, text_bar
from tap_ray.media.text_table import markdown
from tap_ray.media.video import side_by_side, write_video
from tap_ray.play.crop_precision import MakeScene, measure
from tap_ray.specs import missing_slots

MOVED_M = 0.02
"""An object counts as moved if it was ever this far from its initial position, m."""
LEAF_M = 0.05
"""Side of the voxels that count as visited, m."""
NUM_FRAMES = 8
"""Number of images of an episode on the contact sheet."""
NUM_CROPS = 12
"""Number of bouts of contact on the sheet of crops."""
SHEET_PX, PANEL_PX = 192, 288
"""Images of the sheet and of the video are enlarged by whole factors up to about this side."""

EXPLAINED = {
    "sparc": "smoothness (spectral arc length) of an episode's speed at the control rate, mean; 0 is smoothest",
    "log_dimensionless_jerk": "smoothness of an episode's path, mean; larger is smoother, only for equal lengths",
    "voxels": f"voxels of {100 * LEAF_M:.0f} cm that the end effector visited in its first `equal_steps` steps",
    "entropy_bits": "entropy of those visits, bits",
    "equal_steps": "steps over which voxels and entropy are counted: the fewest of any explorer, all arms together",
    "contact_rate": "share of steps with a finger on an object",
    "episodes_moving": f"share of episodes that moved an object over {100 * MOVED_M:.0f} cm",
    "objects_moved": "number of such objects per episode",
}
"""Column -> what it means."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the report needs to know about one arm's part of an episode."""

    index: int
    explorer: str
    position: np.ndarray
    """(T, 3) m, end effector in the base frame."""
    contact: np.ndarray
    """(T,) bool; empty where it is unknown."""
    displacement: np.ndarray
    """(M,) m, largest distance of each object from its initial position; empty if there are no object poses."""


def write(data: Path | str, out: Path | str | None = None, *, make_scene: MakeScene | None = None) -> Path:
    """Report on a dataset of play; what the simulator says of the crops is printed as well.

    Args:
        data: a dataset of `tap_ray.dataset`.
        out: folder for the report; made if it is missing. None: the dataset's "report".
        make_scene: builds the scene in which it was collected; None: the crops are not compared with it.

    Returns:
        The path of report.md.

    Raises:
        DataError: there is no readable dataset, or its state has no end-effector position.
        StorageError: the folder cannot be written.
    """
    dataset = open_dataset(data)
    out = storage.to_path(out or dataset.path / "report")
    played = read(dataset)
    hz = dataset.spec.control_hz
    rows = summarize(played, hz)
    first = {name: next(p.index for p in played if p.explorer == name) for name in (r["explorer"] for r in rows)}
    camera = image_columns(dataset.spec)[0]
    frames = {name: decode_frames(read_episode(dataset, index, [camera]).image_jpeg) for name, index in first.items()}
    precision = measure(dataset, make_scene) if make_scene else None
    if precision:
        print(precision)
    with storage.atomic_write(out, folder=True) as here:
        quality_figure(played, rows, hz).savefig(here / "play.png", dpi=130)
        workspace_figure(played).savefig(here / "workspace.png", dpi=130)
        contact_sheet(frames).save(here / "contact_sheet.png")
        if (crops := crop_sheet(dataset)) is not None:
            crops.save(here / "crops.png")
        write_clips(frames, here / "play.mp4", fps=hz)
        _write_tables(rows, dataset, here, note=str(precision or ""))
    return out / "report.md"


def read(dataset: DatasetInfo, indices: Iterable[int] | None = None) -> list[Played]:
    """Read these episodes of a dataset (None: all) without their images, once for each arm of the robot.

    Raises:
        DataError: the state has no end-effector position.
    """
    if missing := missing_slots(dataset.spec, "ee_pos"):
        raise DataError(
            f"{dataset.path}: the state of robot {dataset.spec.robot!r} lacks {', '.join(missing)} (it has "
            f"{', '.join(slot.name for slot in dataset.spec.state)}), so its movement cannot be evaluated."
        )
    known = {CONTACT: dataset.header.contact, OBJECT_POSE: dataset.header.num_objects}
    columns = [STATE, *(name for name, there in known.items() if there)]
    explorers = list(dataset.episodes["explorer"] if "explorer" in dataset.episodes else ["unknown"] * len(dataset))
    played = []
    for index in range(len(dataset)) if indices is None else indices:
        episode = read_episode(dataset, index, columns)
        played += [
            Played(
                index=index,
                explorer=str(explorers[index]),
                position=episode.state.astype(float)[:, arm.ee_pos],
                contact=episode.contact,
                displacement=displacement(episode.object_pose),
            )
            for arm in dataset.spec.arms
        ]
    return played


def displacement(object_pose_TM7: np.ndarray) -> np.ndarray:
    """(M,) largest distance of each object from its first position, m."""
    position_TM3 = object_pose_TM7[:, :, :3].astype(float)
    return np.linalg.norm(position_TM3 - position_TM3[:1], axis=2).max(axis=0)


def summarize(played: Sequence[Played], hz: float) -> list[dict[str, Any]]:
    """A row for each explorer (alphabetical); columns are explained in `EXPLAINED`, unknown values are None.

    Args:
        played: episodes, at least one.
        hz: control rate.
    """
    groups = {name: [p for p in played if p.explorer == name] for name in sorted({p.explorer for p in played})}
    equal_steps = min(sum(len(p.position) for p in group) for group in groups.values())
    rows = []
    for name, group in groups.items():
        covered = metrics.coverage(np.concatenate([p.position for p in group])[:equal_steps], LEAF_M)
        moved = [int((p.displacement > MOVED_M).sum()) for p in group if p.displacement.size]
        contact = np.concatenate([p.contact for p in group])
        steps = {p.index: len(p.position) for p in group}  # several arms share an episode
        rows.append({
            "explorer": name,
            "episodes": len(steps),
            "steps": sum(steps.values()),
            "sparc": _mean(metrics.sparc(metrics.speed(p.position, hz), hz) for p in group),
            "log_dimensionless_jerk": _mean(metrics.log_dimensionless_jerk(p.position, hz) for p in group),
            "voxels": covered.num_voxels,
            "entropy_bits": covered.entropy_bits,
            "equal_steps": equal_steps,
            "contact_rate": metrics.contact_rate(contact) if contact.size else None,
            "episodes_moving": float(np.mean(np.array(moved) > 0)) if moved else None,
            "objects_moved": _mean(moved),
        })  # fmt: skip
    return rows


def quality_figure(played: Sequence[Played], rows: Sequence[dict[str, Any]], hz: float) -> Figure:
    """Four plots: growth of the visited space, both smoothness scores of every episode, contact and effect."""
    names = [row["explorer"] for row in rows]
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grow, smooth, jerk, effect = figure.subplots(2, 2).flat
    for number, name in enumerate(names):
        path = np.concatenate([p.position for p in played if p.explorer == name])
        grow.plot(*visited_growth(path), color=COLORS[number % len(COLORS)], label=name)
    grow.set(xlabel="steps", ylabel=f"voxels of {100 * LEAF_M:.0f} cm visited", title="diversity")
    grow.legend(frameon=False, fontsize=8)
    groups = [[p.position for p in played if p.explorer == name] for name in names]
    _boxes(smooth, [[metrics.sparc(metrics.speed(x, hz), hz) for x in group] for group in groups], names)
    smooth.set(ylabel="SPARC (0 = smoothest)", title="movement quality")
    _boxes(jerk, [[metrics.log_dimensionless_jerk(x, hz) for x in group] for group in groups], names)
    jerk.set(ylabel="log dimensionless jerk", title="movement quality")
    for shift, key, label in ((-0.2, "contact_rate", "steps in contact"), (0.2, "episodes_moving", "episodes moving")):
        height = [100 * (row[key] or 0.0) for row in rows]
        label += "" if any(row[key] is not None for row in rows) else ": not known"
        effect.bar(np.arange(len(rows)) + shift, height, 0.38, label=label, color=COLORS[int(shift > 0)])
    effect.set(ylim=(0, 105), ylabel="%", title=f"contact and effect (an object over {100 * MOVED_M:.0f} cm)")
    effect.set_xticks(range(len(names)), names)
    effect.legend(frameon=False, fontsize=8)
    return figure


def workspace_figure(played: Sequence[Played]) -> Figure:
    """Where each explorer's end effector was, from above (x, y) and from the side (x, z), logarithmic counts."""
    names = sorted({p.explorer for p in played})
    everything = np.concatenate([p.position for p in played])
    low, high = everything.min(0) - LEAF_M, everything.max(0) + LEAF_M
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 4.8), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        path = np.concatenate([p.position for p in played if p.explorer == name])
        for row, (a, b) in enumerate(((0, 1), (0, 2))):
            limits = [[low[a], high[a]], [low[b], high[b]]]
            grid[row, column].hist2d(path[:, a], path[:, b], bins=40, range=limits, norm="log", cmap="viridis")
            grid[row, column].set(xlabel=f"{'xyz'[a]}, m", ylabel=f"{'xyz'[b]}, m", aspect="equal")
        grid[0, column].set_title(name)
    return figure


def contact_sheet(frames: dict[str, np.ndarray]) -> Image.Image:
    """A row of `NUM_FRAMES` images from one episode of each explorer; `frames`: explorer -> (T, Y, X, 3)."""
    rows = []
    for name, rgb in frames.items():
        moments = enlarged(rgb[np.linspace(0, len(rgb) - 1, NUM_FRAMES).round().astype(int)], SHEET_PX)
        rows.append(np.concatenate([text_bar(NUM_FRAMES * moments.shape[2], name), np.concatenate([*moments], axis=1)]))
    width = max(row.shape[1] for row in rows)
    return Image.fromarray(np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]))


def crop_sheet(dataset: DatasetInfo) -> Image.Image | None:
    """The first bouts of contact of `NUM_CROPS` episodes: a row each with the crops of the object and of its place
    (black: none), the images before and at the first touch, at the last one and after it.

    Returns:
        The image; None if the dataset has no robot masks, or nothing was moved.
    """
    rows: list[np.ndarray] = []
    for index in range(len(dataset)) if dataset.header.robot_mask and dataset.header.contact else ():
        if len(rows) == NUM_CROPS:
            break
        contact_T = read_episode(dataset, index, [CONTACT]).contact
        if not contact_T.any():
            continue
        episode = read_episode(dataset, index, [image_columns(dataset.spec)[0], MASK])
        rgb = decode_frames(episode.image_jpeg)
        crops = cut_masked(rgb, episode.mask_png or (), contact_T, CROPS)
        if len(crops):
            touch, end = crops.touch_B[0], crops.end_B[0]
            moments = enlarged(rgb[[touch - 1, touch, end, min(end + 2, len(rgb) - 1)]], SHEET_PX)
            pair = enlarged(np.stack([crops.object_rgb[0], crops.place_rgb[0]]), SHEET_PX)
            height = max(moments.shape[1], pair.shape[1])
            rows.append(np.concatenate([_filled(image, height) for image in (*pair, *moments)], axis=1))
    if not rows:
        return None
    title = text_bar(rows[0].shape[1], "touched next, left there | before, first touch, last touch, after")
    return Image.fromarray(np.concatenate([title, *rows]))


def _filled(rgb: np.ndarray, height: int) -> np.ndarray:
    return np.pad(rgb, ((0, height - len(rgb)), (0, 0), (0, 0)))


def write_clips(frames: dict[str, np.ndarray], path: Path, *, fps: float) -> None:
    """One episode of each explorer side by side, in real time."""
    write_video(path, side_by_side([panel(rgb, name, side_px=PANEL_PX) for name, rgb in frames.items()]), fps=fps)


def _write_tables(rows: Sequence[dict[str, Any]], dataset: DatasetInfo, out: Path, *, note: str) -> None:
    with open(out / "play.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "play.json").write_text(json.dumps(list(rows), indent=2) + "\n")
    words = "\n".join(f"- `{name}`: {meaning}" for name, meaning in EXPLAINED.items())
    facts = f"{dataset.path}: {len(dataset)} episodes, {int(dataset.lengths.sum())} steps"
    names = ("play.png", "workspace.png", "contact_sheet.png", "crops.png")
    images = "\n".join(f"![{name}]({name})" for name in names if (out / name).exists())
    words += f"\n\n{note}" if note else ""
    text = f"# Play\n\n{facts} at {dataset.spec.control_hz:g} Hz.\n\n{markdown(rows)}\n\n{words}\n\n{images}\n"
    (out / "report.md").write_text(text + "\nVideo: [play.mp4](play.mp4)\n")


def visited_growth(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K,) steps, and (K,) numbers of voxels visited by then, of a path (T, 3) in m."""
    _, first = np.unique(np.floor(path / LEAF_M), axis=0, return_index=True)
    return np.append(np.sort(first) + 1, len(path)), np.append(np.arange(1, len(first) + 1), len(first))


def _boxes(axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    finite = [[v for v in group if np.isfinite(v)] for group in values]
    axes.boxplot(finite, showfliers=False, widths=0.5, medianprops={"color": COLORS[0]})
    axes.set_xticks(range(1, len(names) + 1), list(names))


def _mean(values: Iterable[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None
