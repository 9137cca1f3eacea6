"""Draws saliency maps over the frames, as a strip (an image for each episode) and as a video."""

from pathlib import Path
from typing import Mapping

import matplotlib
import numpy as np
from PIL import Image

from tap_ray import storage
from tap_ray.media.image import enlarged, panel, text_bar
from tap_ray.media.video import side_by_side, write_video

CELL_PX = 192
"""Frames of a strip are enlarged by whole factors up to about this side."""
CLIP_PX = 384
"""Frames of a video are enlarged by whole factors up to about this side."""
STRENGTH = 0.7
"""Opacity of the map's colors where the map is largest; where the map is 0 the frame is unchanged."""


def overlay(rgb_TYX3: np.ndarray, map_TYX: np.ndarray) -> np.ndarray:
    """(T, Y, X, 3) uint8: each frame's map, divided by its own largest value, blue (0) to red (1), over the frame."""
    most = map_TYX.max((1, 2), keepdims=True)
    level_TYX = map_TYX / np.where(most > 0, most, 1)
    heat_TYX3 = 255 * matplotlib.colormaps["turbo"](level_TYX)[..., :3]
    strength_TYX1 = STRENGTH * level_TYX[..., None]
    return ((1 - strength_TYX1) * rgb_TYX3 + strength_TYX1 * heat_TYX3).round().astype(np.uint8)


def write_strip(path: Path, rows: Mapping[str, np.ndarray], *, title: str, every: int) -> None:
    """Write an image with every `every`-th step of each row side by side, and a row's name above it.

    Args:
        path: a PNG.
        rows: name -> (T, Y, X, 3) uint8.
        title: heading of the image.
        every: steps between two images.
    """
    bands: list[np.ndarray] = []
    for name, frames in rows.items():
        images = np.concatenate(list(enlarged(frames[::every], CELL_PX)), axis=1)
        bands += [text_bar(images.shape[1], *([] if bands else [title]), name), images]
    with storage.atomic_write(path) as here:
        Image.fromarray(np.concatenate(bands)).save(here)


def write_clip(path: Path, rows: Mapping[str, np.ndarray], *, title: str, fps: float) -> None:
    """Write the rows of a strip as one video, side by side."""
    write_video(
        path, side_by_side([panel(frames, title, name, side_px=CLIP_PX) for name, frames in rows.items()]), fps=fps
    )
