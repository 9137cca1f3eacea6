"""A video per task: a success and a failure side by side, with the instruction and the outcome above them."""

from io import BytesIO
from pathlib import Path
from typing import Any, Sequence

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tap_ray import storage
from tap_ray.evaluate.episodes import Clip
from tap_ray.types import EpisodeResult

PANEL_PX = 384
"""Images are enlarged by whole factors up to about this side."""
BAR_PX = 48
"""Height of the text above an image."""
GREEN, RED, WHITE = (90, 200, 110), (235, 100, 90), (235, 235, 235)


def keep(folder: Path, clip: Clip) -> None:
    """Store a clip if no earlier cell of its scene with the same outcome is stored, so that a resumed run has it."""
    cell, outcome = clip.result.cell, _outcome(clip.result)
    name = f"{cell.task}.{cell.scenario}.{clip.result.entire_once}"
    rivals = sorted(folder.glob(f"{name}.*.npz"))
    path = folder / f"{name}.{cell.initial_state:06d}.npz"
    if rivals and rivals[0] <= path:
        return
    with storage.staged(path) as here:
        np.savez_compressed(here, rgb=clip.rgb, title=clip.instruction, outcome=outcome)
    for rival in rivals:
        rival.unlink()


def _outcome(result: EpisodeResult) -> str:
    end = "" if result.entire_end == result.entire_once else ", but not at the end"
    state = f"initial state {result.cell.initial_state}"
    if result.entire_once:
        return f"success{end} ({state})"
    how = result.failure.replace("_", " ") or ("partial only" if result.partial_once else "not even partial")
    return f"failure: {how} ({state})"


def write_videos(clips: Path, videos: Path, *, fps: float) -> list[Path]:
    """Turn the kept clips into `<task>.mp4` ("standard") and `<task>-<scenario>.mp4`; H.264, yuv420p.

    Args:
        clips: folder that `keep` filled.
        videos: where to write.
        fps: images a second; the control rate shows real time.
    """
    scenes: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(clips.glob("*.npz"), key=lambda path: path.name.split(".")[2], reverse=True):
        task, scenario, *_ = path.name.split(".")
        scenes.setdefault((task, scenario), []).append(path)
    storage.make_folder(videos)
    written = []
    for (task, scenario), paths in sorted(scenes.items()):
        path = videos / (f"{task}.mp4" if scenario == "standard" else f"{task}-{scenario}.mp4")
        frames = side_by_side([_panel_of(np.load(BytesIO(storage.read(p)))) for p in paths])
        write_video(path, frames, fps=fps)
        written.append(path)
    return written


def write_video(path: Path, frames: np.ndarray, *, fps: float) -> None:
    """(T, Y, X, 3) images with even sides as H.264, yuv420p."""
    with storage.staged(path) as here:
        iio.imwrite(here, frames, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2)


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels (T, Y, X, 3) of equal height beside each other; a shorter one holds its last image."""
    length = max(len(panel) for panel in panels)
    held = [np.concatenate([panel, panel[-1:].repeat(length - len(panel), 0)]) for panel in panels]
    return np.concatenate(held, axis=2)


def _panel_of(clip: Any) -> np.ndarray:
    outcome = str(clip["outcome"])
    color = GREEN if outcome.startswith("success") else RED
    return panel(clip["rgb"], str(clip["title"]), outcome, color=color)


def panel(rgb: np.ndarray, title: str, text: str, *, color: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(T, Y', X', 3): images enlarged by a whole factor, without smoothing, below a bar of text; even sides."""
    factor = max(1, PANEL_PX // rgb.shape[2])
    large = rgb.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = (side + side % 2 for side in large.shape[1:3])
    bar = Image.new("RGB", (width, BAR_PX))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(15)
    draw.text((8, 4), title, fill=WHITE, font=font)
    draw.text((8, 25), text, fill=color, font=font)
    frames = np.zeros((len(rgb), BAR_PX + height, width, 3), np.uint8)
    frames[:, :BAR_PX] = np.asarray(bar)
    frames[:, BAR_PX : BAR_PX + large.shape[1], : large.shape[2]] = large
    return frames
