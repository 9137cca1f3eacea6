"""Maps of saliency as images: laid over the frames, as a strip (a image an episode) and as a video."""

from pathlib import Path
from typing import Mapping

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tap_ray import storage
from tap_ray.evaluate.video import WHITE, panel, side_by_side, write_video

CELL_PX = 192
"""Frames of a strip are enlarged by whole factors up to about this side."""
BAR_PX = 22
"""Height of the text above each row of a strip."""
STRENGTH = 0.7
"""Of the map's colors against the frame's, where the map is largest; where it is 0 the frame shows as it is."""


def overlay(rgb_TYX3: np.ndarray, map_TYX: np.ndarray) -> np.ndarray:
    """(T, Y, X, 3) uint8: each frame's map, divided by its own largest value, blue (0) to red (1), over the frame."""
    most = map_TYX.max((1, 2), keepdims=True)
    level_TYX = map_TYX / np.where(most > 0, most, 1)
    heat_TYX3 = 255 * matplotlib.colormaps["turbo"](level_TYX)[..., :3]
    strength_TYX1 = STRENGTH * level_TYX[..., None]
    return ((1 - strength_TYX1) * rgb_TYX3 + strength_TYX1 * heat_TYX3).round().astype(np.uint8)


def write_strip(path: Path, rows: Mapping[str, np.ndarray], *, title: str, every: int) -> None:
    """Every `every`-th step of each row beside each other, a row's name above it.

    Args:
        path: a PNG.
        rows: name -> (T, Y, X, 3) uint8.
        title: above everything.
        every: steps between two images.
    """
    bands = [_bar(title, rows, every)]
    for name, frames in rows.items():
        large = frames[::every].repeat(_factor(frames), axis=1).repeat(_factor(frames), axis=2)
        bands += [_bar(name, rows, every), np.concatenate(list(large), axis=1)]
    with storage.staged(path) as here:
        Image.fromarray(np.concatenate(bands)).save(here)


def write_clip(path: Path, rows: Mapping[str, np.ndarray], *, title: str, fps: float) -> None:
    """The rows of a strip as one video, side by side."""
    write_video(path, side_by_side([panel(frames, title, name) for name, frames in rows.items()]), fps=fps)


def _factor(frames: np.ndarray) -> int:
    return max(1, CELL_PX // frames.shape[2])


def _bar(text: str, rows: Mapping[str, np.ndarray], every: int) -> np.ndarray:
    frames = next(iter(rows.values()))
    width = len(frames[::every]) * frames.shape[2] * _factor(frames)
    bar = Image.new("RGB", (width, BAR_PX))
    ImageDraw.Draw(bar).text((6, 2), text, fill=WHITE, font=ImageFont.load_default(14))
    return np.asarray(bar)
