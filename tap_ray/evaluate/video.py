"""Makes a video per task: a success and a failure side by side, with the instruction and the outcome above them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tap_ray import storage
from tap_ray.evaluate.episodes import Clip
from tap_ray.media.image import panel
from tap_ray.media.video import side_by_side, write_video
from tap_ray.types import EpisodeResult

PANEL_PX = 384
"""Images are enlarged by whole factors up to about this side."""
GREEN, RED = (90, 200, 110), (235, 100, 90)


def keep(folder: Path, clip: Clip) -> None:
    """Store a clip unless an earlier cell of its scene with the same outcome is stored; a resumed run then has the same
    clips."""
    cell, outcome = clip.result.cell, outcome_of(clip.result)
    name = f"{cell.task}.{cell.scenario}.{clip.result.entire_once}"
    rivals = sorted(folder.glob(f"{name}.*.npz"))
    path = folder / f"{name}.{cell.initial_state:06d}.npz"
    if rivals and rivals[0] <= path:
        return
    with storage.atomic_write(path) as here:
        np.savez_compressed(here, rgb=clip.rgb, title=clip.instruction, outcome=outcome)
    for rival in rivals:
        rival.unlink()


def outcome_of(result: EpisodeResult) -> str:
    """The outcome of an episode in words, for the caption of its video."""
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
        fps: images per second; the control rate gives real time.
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


def _panel_of(clip: Any) -> np.ndarray:
    outcome = str(clip["outcome"])
    color = GREEN if outcome.startswith("success") else RED
    return panel(clip["rgb"], str(clip["title"]), outcome, side_px=PANEL_PX, color=color)
