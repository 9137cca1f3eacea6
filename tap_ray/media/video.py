"""Writes videos as H.264, yuv420p, which browsers can play."""

from fractions import Fraction
from pathlib import Path
from typing import Iterable, Sequence

import av
import imageio.v3 as iio
import numpy as np

from tap_ray import storage


def write_video(path: Path, frames_TYX3: np.ndarray, *, fps: float) -> None:
    """Write images with even sides as a video."""
    with storage.atomic_write(path) as here:
        iio.imwrite(here, frames_TYX3, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2)


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels (T, Y, X, 3) of equal height side by side; a shorter one repeats its last image."""
    length = max(len(panel) for panel in panels)
    held = [np.concatenate([panel, panel[-1:].repeat(length - len(panel), 0)]) for panel in panels]
    return np.concatenate(held, axis=2)


def write_h264(path: Path, frames: Iterable[np.ndarray], *, fps: float, crf: int, key_every: int, pix_fmt: str) -> None:
    """Write a video from an iterator of images; the n-th image is shown at exactly n / fps seconds.

    The same images give the same bytes.

    Args:
        path: the MP4 file to write.
        frames: (Y, X, 3) uint8 each, with even sides; at least one.
        fps: images per second.
        crf: constant rate factor of x264, 0 (best quality) to 51.
        key_every: images from one key frame to the next.
        pix_fmt: "yuv444p" keeps color at full resolution, "yuv420p" at half.
    """
    rate = Fraction(fps).limit_denominator(1001)
    with storage.atomic_write(path) as here, av.open(str(here), "w", format="mp4") as container:
        # Without lookahead: with it about one video in 400 differs by some bytes from run to run.
        options = {"crf": str(crf), "g": str(key_every), "bf": "0", "x264-params": "sync-lookahead=0:rc-lookahead=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt, stream.thread_count = pix_fmt, 1
        for number, rgb in enumerate(frames):
            if not number:
                stream.height, stream.width = rgb.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
