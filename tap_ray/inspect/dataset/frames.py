"""Finds images of some episodes that are black, of one color, or unchanged although the robot moves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tap_ray.dataset.layout import IMAGES, STATE, image_columns
from tap_ray.dataset.reader import DatasetInfo, read_episode
from tap_ray.errors import DataError
from tap_ray.inspect.dataset.survey import longest_run, moving_steps
from tap_ray.media.image import decode_jpeg

BLACK = 16.0
"""An image is black if no pixel is brighter than this, 0 .. 255: the black level of video."""
FLAT = 3.0
"""An image is of one color if the standard deviation of each channel is below this."""
SAME = 0.25
"""Two images are the same if they differ by less than this on average, of 255; the rest is codec noise."""
LOOK_PX = 8
"""Side of the small image by which the appearance of episodes is compared, px."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found in the images of one episode."""

    index: int
    frames: int
    black: tuple[int, ...]
    """Frames that are black."""
    flat: tuple[int, ...]
    """Frames of one color, except black ones."""
    frozen: tuple[int, int]
    """First frame and number of the longest stretch of images that repeat the one before while the robot moves."""
    num_frozen: int
    """Number of all such images."""
    moving: int
    """Number of steps in which the robot moves so far that the image must change."""
    look: np.ndarray
    """(LOOK_PX * LOOK_PX * 3,) float32: its first image, downscaled, 0 .. 255."""


@dataclass(kw_only=True)
class Frames:
    """What was found in the images of some episodes."""

    episodes: list[Seen] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    """Episode -> why its images cannot be read."""
    others: dict[str, "Frames"] = field(default_factory=dict)
    """What was found in the images of the other cameras."""

    @property
    def num(self) -> int:
        """Number of images that were checked."""
        return sum(each.frames for each in self.episodes)


def chosen(lengths: np.ndarray, most: int) -> list[int]:
    """Evenly spaced episodes with about `most` images together, or all of them; at least one."""
    num = len(lengths)
    count = num if most == 0 else min(num, max(1, int(most / max(lengths.mean(), 1))))
    return sorted({int(index) for index in np.linspace(0, num - 1, count).round()})


def look(dataset: DatasetInfo, indices: Iterable[int]) -> Frames:
    """Check all images of these episodes, one episode at a time."""
    columns = image_columns(dataset.spec)
    frames = Frames(others={name.removeprefix(IMAGES): Frames() for name in columns[1:]})
    for index in indices:
        try:
            episode = read_episode(dataset, index, [*columns, STATE])
            cameras = zip((frames, *frames.others.values()), (episode.image_jpeg, *episode.extra_jpeg), strict=True)
            seen = [(of, _seen(dataset, index, files, episode.state)) for of, files in cameras]
            for of, one in seen:
                of.episodes.append(one)
        except (DataError, OSError) as error:  # Pillow's are OSErrors
            frames.damaged[index] = str(error)
    return frames


def _seen(dataset: DatasetInfo, index: int, files: Sequence[bytes], state: np.ndarray) -> Seen:
    moving = moving_steps(dataset.spec, state.astype(np.float64))
    black, flat = [], []
    same = np.zeros(max(len(files) - 1, 0), bool)
    before = first = None
    for number, file in enumerate(files):
        rgb = decode_jpeg(file)
        if rgb.max() <= BLACK:
            black.append(number)
        elif rgb.std(axis=(0, 1)).max() < FLAT:
            flat.append(number)
        if before is None:
            first = rgb
        else:
            same[number - 1] = np.abs(rgb.astype(np.int16) - before).mean() < SAME
        before = rgb.astype(np.int16)
    assert first is not None, "an episode has a step"
    same[[number - 1 for number in (*black, *flat) if number]] = False  # reported already
    frozen = same & moving
    start, length = longest_run(frozen)
    small = Image.fromarray(first).resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX)
    return Seen(
        index=index,
        frames=len(files),
        black=tuple(black),
        flat=tuple(flat),
        frozen=(start + 1, length),
        num_frozen=int(frozen.sum()),
        moving=int(moving.sum()),
        look=np.asarray(small, np.float32).ravel(),
    )


def strip(dataset: DatasetInfo, index: int, num: int = 8, between: tuple[int, int] | None = None) -> np.ndarray:
    """(Y, X, 3) uint8: evenly spaced images of one episode side by side; a row for each camera.

    Args:
        dataset: the dataset.
        index: index of the episode.
        num: largest number of images.
        between: first frame and one after the last; None: all.
    """
    episode = read_episode(dataset, index, image_columns(dataset.spec))
    steps = len(episode.image_jpeg)
    first, end = between or (0, steps)
    end = min(end, steps)
    at = np.unique(np.linspace(first, end - 1, min(num, end - first)).round().astype(int))
    rows = (episode.image_jpeg, *episode.extra_jpeg)
    return np.concatenate([np.concatenate([decode_jpeg(files[n]) for n in at], axis=1) for files in rows])
