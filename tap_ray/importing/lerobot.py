"""Reads LeRobotDataset v2.1 and v3.0 as sources, with images in Parquet or as video."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tap_ray.errors import DataError
from tap_ray.importing.source import Column, inside
from tap_ray.media.image import decode_jpeg

OWN = {"frame_index", "episode_index", "index", "task_index"}
"""LeRobot's own columns, which are not measurements."""
TASK = "task"
"""lerobot's name for an episode's instruction."""


class LeRobotSource:
    """One dataset on a disk."""

    default_instruction = TASK

    def __init__(self, root: Path) -> None:
        """
        Raises:
            DataError: it is not a LeRobotDataset, or of another version.
        """
        self._root = root
        file = root / "meta/info.json"
        if not file.exists():
            raise DataError(f"{root} is not a LeRobot dataset: it has no meta/info.json.")
        self._info: dict[str, Any] = json.loads(file.read_text())
        version = self._info.get("codebase_version")
        if version not in ("v2.1", "v3.0"):
            raise DataError(
                f"{root} is a LeRobot dataset of version {version}; only v2.1 and v3.0 can be imported. lerobot has "
                "scripts that convert it."
            )
        self._v3 = version == "v3.0"
        self.fps = float(self._info["fps"])
        self.num_episodes = int(self._info["total_episodes"])
        features = self._info["features"]
        self.cameras: dict[str, tuple[int, int]] = {
            name: (feature["shape"][0], feature["shape"][1])
            for name, feature in features.items()
            if feature["dtype"] in ("image", "video")
        }
        self.columns = {
            name: Column(size=int(np.prod(feature["shape"])), names=_names(feature.get("names")))
            for name, feature in features.items()
            if name not in self.cameras and name not in OWN and feature["dtype"] != "string"
        }

    def numbers(self, episode: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (T, size) float64, and "timestamp" (T,), s."""
        table = self._table(episode, [*columns, "timestamp"])
        found = {}
        for name in dict.fromkeys([*columns, "timestamp"]):
            rows = np.array(table[name].to_pylist(), np.float64)
            found[name] = rows if name == "timestamp" else rows.reshape(len(rows), -1)
        return found

    def images(self, episode: int, camera: str, frames: Sequence[int]) -> list[np.ndarray]:
        """(Y, X, 3) uint8 images of the requested frames, in order."""
        if files := self.files(episode, camera, frames):
            return [decode_jpeg(data) for data in files]
        file, begin_s = self._video(episode, camera)
        return _video_frames(file, [begin_s + frame / self.fps for frame in frames], 0.5 / self.fps)

    def files(self, episode: int, camera: str, frames: Sequence[int]) -> list[bytes]:
        """The image files of the requested frames, in order; none of a video."""
        if self._info["features"][camera]["dtype"] != "image":
            return []
        cells = self._table(episode, [camera])[camera].to_pylist()
        return [_file_of(cells[frame], self._root) for frame in frames]

    def instruction(self, episode: int, column: str) -> str:
        """The episode's sentence."""
        if column != TASK:
            values = self._table(episode, [column])[column].to_pylist()
            return str(values[0])
        return self._tasks[int(self._table(episode, ["task_index"])["task_index"][0].as_py())]

    def _table(self, episode: int, columns: Sequence[str]) -> Any:
        if not self._v3:
            chunk = episode // int(self._info["chunks_size"])
            name = self._info["data_path"].format(episode_chunk=chunk, episode_index=episode)
            return _read(inside(self._root, name), columns)
        row = self._episodes.iloc[episode]
        chunk, number = int(row["data/chunk_index"]), int(row["data/file_index"])
        file = inside(self._root, self._info["data_path"].format(chunk_index=chunk, file_index=number))
        return _read(file, columns, [("episode_index", "=", episode)])

    def _video(self, episode: int, camera: str) -> tuple[Path, float]:
        """The video file, and the time in it at which the episode begins, s."""
        if not self._v3:
            chunk = episode // int(self._info["chunks_size"])
            name = self._info["video_path"].format(episode_chunk=chunk, video_key=camera, episode_index=episode)
            return inside(self._root, name), 0.0
        row = self._episodes.iloc[episode]
        chunk, number = (int(row[f"videos/{camera}/{part}"]) for part in ("chunk_index", "file_index"))
        name = self._info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=number)
        return inside(self._root, name), float(row[f"videos/{camera}/from_timestamp"])

    @cached_property
    def _episodes(self) -> pd.DataFrame:
        files = sorted((self._root / "meta/episodes").glob("*/*.parquet"))
        tables = [pd.read_parquet(file) for file in files]
        rows = pd.concat(tables).sort_values("episode_index").reset_index(drop=True) if tables else pd.DataFrame()
        if len(rows) != self.num_episodes or (rows.index != rows["episode_index"]).any():
            raise DataError(
                f"{self._root}/meta/episodes has {len(rows)} episodes, but info.json says {self.num_episodes}: the "
                "dataset is incomplete. Download or record it again."
            )
        return rows

    @cached_property
    def _tasks(self) -> dict[int, str]:
        if self._v3:
            table = pd.read_parquet(self._root / "meta/tasks.parquet").reset_index(names=TASK)
            return dict(zip(table["task_index"].astype(int), table[TASK], strict=True))
        lines = (self._root / "meta/tasks.jsonl").read_text().splitlines()
        return {int(line["task_index"]): line["task"] for line in map(json.loads, lines)}


def _names(names: Any) -> tuple[str, ...]:
    """Names of a feature's dims; lerobot writes a list, or a dict of lists."""
    if isinstance(names, dict):
        names = [name for part in names.values() for name in (part if isinstance(part, list) else [part])]
    return tuple(map(str, names or ()))


def _read(file: Path, columns: Sequence[str], filters: Any = None) -> Any:
    try:
        return pq.read_table(file, columns=list(dict.fromkeys(columns)), filters=filters)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{file} cannot be read: {error}. Download or record the dataset again.") from None


def _file_of(cell: Any, root: Path) -> bytes:
    """The image file of a Parquet cell, which holds its bytes or a path."""
    if data := cell.get("bytes"):
        return data
    file = inside(root, cell["path"])
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}. Download or record the dataset again.") from None


def _video_frames(file: Path, times_s: Sequence[float], tolerance_s: float) -> list[np.ndarray]:
    """The video frame shown at each time.

    Raises:
        DataError: there is no frame within the tolerance, or the file cannot be read.
    """
    found: list[np.ndarray] = []
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or 1)
            container.seek(max(0, int((times_s[0] - tolerance_s) / base)), stream=stream, backward=True)
            remaining_s = iter(times_s)
            time_s = next(remaining_s)
            for frame in container.decode(stream):
                while abs(float(frame.time or 0.0) - time_s) < tolerance_s:
                    found.append(frame.to_ndarray(format="rgb24"))
                    time_s = next(remaining_s, float("inf"))
                if len(found) == len(times_s):
                    return found
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{file} cannot be decoded: {error}. Download or record the dataset again.") from None
    raise DataError(
        f"{file} has no frame at {times_s[len(found)]:.3f} s: the video is shorter than the data, or has another fps. "
        "Download or record the dataset again."
    )
