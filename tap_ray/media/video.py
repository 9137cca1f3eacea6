"""Videos: H.264, yuv420p, so that browsers play them."""

from pathlib import Path
from typing import Sequence

import imageio.v3 as iio
import numpy as np

from tap_ray import storage


def write_video(path: Path, frames_TYX3: np.ndarray, *, fps: float) -> None:
    """Images with even sides as a video."""
    with storage.atomic_write(path) as here:
        iio.imwrite(here, frames_TYX3, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2)


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels (T, Y, X, 3) of equal height beside each other; a shorter one holds its last image."""
    length = max(len(panel) for panel in panels)
    held = [np.concatenate([panel, panel[-1:].repeat(length - len(panel), 0)]) for panel in panels]
    return np.concatenate(held, axis=2)
