"""Defines the interface through which the importer reads a dataset of another format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from tap_ray.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers, one row per frame."""

    size: int
    """Numbers in a row."""
    names: tuple[str, ...] = ()
    """The source's names for them; empty if it has none."""


class Source(Protocol):
    """A dataset of another format. It is opened in each process, so it must be picklable or be made there."""

    default_instruction: str
    """The column that holds the instruction; "": the source has none."""

    @property
    def fps(self) -> float:
        """Frames per second according to its metadata; 0 if they do not say."""
        ...

    @property
    def num_episodes(self) -> int: ...

    @property
    def columns(self) -> Mapping[str, Column]: ...

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """Camera -> (Y, X) of its images, px."""
        ...

    def numbers(self, episode: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (T, size) float64. "timestamp" is (T,), s, where the source has it."""
        ...

    def images(self, episode: int, camera: str, frames: Sequence[int]) -> list[np.ndarray]:
        """(Y, X, 3) uint8 images of the requested frames, in order."""
        ...

    def files(self, episode: int, camera: str, frames: Sequence[int]) -> list[bytes]:
        """The image files of the requested frames as they are stored, in order; none of a video or of arrays."""
        ...

    def instruction(self, episode: int, column: str) -> str:
        """The episode's instruction; "" if there is none."""
        ...


def inside(root: Path, name: str) -> Path:
    """A file that the dataset names; links inside it may lead anywhere, as those of the hub's cache do.

    Raises:
        DataError: the name leads out of the dataset, which could make an import read any file of this machine.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root} names the file {name}, which lies outside the dataset. Do not trust this dataset.")
    return root / path
