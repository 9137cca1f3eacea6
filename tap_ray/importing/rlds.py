"""Reads RLDS datasets as written by TensorFlow Datasets (TFDS), e.g. those of Open X-Embodiment, without TensorFlow.

    bridge_dataset/1.0.0/features.json                        the schema of an episode
                         dataset_info.json                    the splits, and how many episodes each file has
                         bridge_dataset-train.tfrecord-00000-of-01024

An episode is a record: a tf.train.Example in which the values of its T steps are concatenated.

    steps/action                    floats  T x 7
    steps/observation/image_0       bytes   T encoded images
    steps/language_instruction      bytes   T instructions

Columns are named after their path below "steps": "action", "observation/state". Features without a fixed size (a
sequence in a step) are ignored. The last step of an RLDS episode is ignored too, because its action has no meaning.
"""

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tap_ray.dataset.layout import read_json
from tap_ray.errors import ConfigError, DataError, nearest
from tap_ray.importing import tfrecord
from tap_ray.importing.source import Column, inside

STEPS = "steps"
SENTENCES = ("language_instruction", "observation/natural_language_instruction", "natural_language_instruction")
"""Columns of the instruction in the datasets of Open X-Embodiment."""
PUBLISHED_HZ = {"bridge": 5.0, "droid": 15.0, "fractal20220817_data": 3.0, "libero": 20.0}
"""Prefix of a dataset's name -> its published control rate, Hz, with which the mapping's rate is compared."""
DOWNLOAD = "Download the dataset again, with features.json, dataset_info.json and all of its files."


class RldsSource:
    """A split of one dataset on a disk. Its `fps` is what its makers publish, or 0: RLDS has no such field."""

    def __init__(self, folder: Path, split: str = "") -> None:
        """
        Args:
            folder: folder with features.json, or its parent if that holds a single version.
            split: name of the split; "" for "train", or the only one.

        Raises:
            DataError: it is not such a dataset, or written in another file format.
            ConfigError: it has no such split.
        """
        self._folder = _version(folder)
        features = read_json(self._folder / "features.json", DOWNLOAD)
        if "featuresDict" not in features:
            raise DataError(
                f"{self._folder}/features.json has no 'featuresDict', so it was written by TFDS before 4.7. Open it "
                "with a newer tensorflow_datasets and save it again: builder.info.features.save_config(FOLDER)."
            )
        found = dict(_leaves(features, ()))
        self._features = {name[len(STEPS) + 1 :]: leaf for name, leaf in found.items() if name.startswith(STEPS + "/")}
        if not self._features:
            raise DataError(
                f"{self._folder} is not an RLDS dataset: none of its features ({', '.join(found) or 'none'}) is below "
                f"'{STEPS}'."
            )
        self._shards = self._files(split)
        name = read_json(self._folder / "dataset_info.json", DOWNLOAD)["name"]
        self.fps = next((hz for known, hz in PUBLISHED_HZ.items() if name.startswith(known)), 0.0)
        self.num_episodes = sum(count for _, count in self._shards)
        self.columns = {
            name: Column(size=math.prod(_shape(leaf["tensor"])))
            for name, leaf in self._features.items()
            if "tensor" in leaf and leaf["tensor"]["dtype"] != "string" and min(_shape(leaf["tensor"]), default=1) > 0
        }
        self.default_instruction = next((name for name in SENTENCES if name in self._features), "")
        self._last: tuple[int, dict[str, Any]] | None = None
        self._indices: dict[Path, list[tuple[int, int]]] = {}
        self.cameras = self._cameras()

    def _cameras(self) -> dict[str, tuple[int, int]]:
        """Camera -> (Y, X) of its images; if the schema does not state it, of the first image."""
        found = {}
        for name, leaf in self._features.items():
            shape = _shape(leaf.get("image", {}))
            if len(shape) == 3 and shape[2] == 3:
                y, x = shape[:2] if min(shape) > 0 else self.images(0, name, [0])[0].shape[:2]
                found[name] = (y, x)
        return found

    def numbers(self, episode: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (T, size) float64."""
        steps = self._steps(episode)
        found = {}
        for name in columns:
            size, values = self.columns[name].size, self._values(episode, name)
            rows = _decoded(values, self._features[name]["tensor"])
            if rows.size % size or rows.size // size < steps:
                raise DataError(
                    f"{self._where(episode)}: 'steps/{name}' has {rows.size} numbers; expected {steps} steps of "
                    f"{size}. {DOWNLOAD}"
                )
            found[name] = rows.reshape(-1, size)[:steps]
        return found

    def images(self, episode: int, camera: str, frames: Sequence[int]) -> list[np.ndarray]:
        """(Y, X, 3) uint8 images of the requested frames, in order."""
        files = self.files(episode, camera, frames)
        return [self._image(episode, camera, frame, data) for frame, data in zip(frames, files, strict=True)]

    def files(self, episode: int, camera: str, frames: Sequence[int]) -> list[bytes]:
        """The image files of the requested frames, in order."""
        encoded = self._values(episode, camera)
        if frames and frames[-1] >= len(encoded):
            raise DataError(
                f"{self._where(episode)}: 'steps/{camera}' has {len(encoded)} images, so frame {frames[-1]} is "
                f"missing. {DOWNLOAD}"
            )
        return [encoded[frame] for frame in frames]

    def instruction(self, episode: int, column: str) -> str:
        """The instruction of the episode's first step."""
        values = self._values(episode, column)
        return bytes(values[0]).decode("utf-8", "replace") if len(values) else ""

    def _image(self, episode: int, camera: str, frame: int, data: bytes) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"{self._where(episode)}: image {frame} of 'steps/{camera}' cannot be decoded ({error}). Omit the "
                f"episode with --omit {episode}, or name another camera."
            ) from None

    def _steps(self, episode: int) -> int:
        """Number of steps T, without the last one."""
        record = self._record(episode)
        counts = [len(record[f"{STEPS}/{name}"]) for name in ("is_first", "is_last") if f"{STEPS}/{name}" in record]
        counts += [len(record[key]) for key in (f"{STEPS}/{camera}" for camera in self.cameras) if key in record]
        if not counts:
            raise DataError(
                f"{self._where(episode)} has neither images nor 'steps/is_first', so its length is unknown."
            )
        return max(0, min(counts) - 1)

    def _values(self, episode: int, name: str) -> Any:
        record = self._record(episode)
        for key in (f"{STEPS}/{name}", name):
            if key in record:
                return record[key]
        raise DataError(
            f"{self._where(episode)} has no feature 'steps/{name}'. {nearest(f'{STEPS}/{name}', list(record))}"
        )

    def _record(self, episode: int) -> dict[str, Any]:
        """The features of an episode; the last episode is kept in memory, because numbers and images are read in
        turn."""
        if self._last is None or self._last[0] != episode:
            file, number = self._place(episode)
            records = self._index(file, dict(self._shards)[file])
            try:
                self._last = (episode, tfrecord.values(tfrecord.read(file, *records[number], number)))
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"{file}: record {number} is not an RLDS episode: {error}. {DOWNLOAD}") from None
        return self._last[1]

    def _index(self, file: Path, count: int) -> list[tuple[int, int]]:
        if file not in self._indices:
            self._indices[file] = tfrecord.index(file)
        if len(self._indices[file]) != count:
            raise DataError(
                f"{file} has {len(self._indices[file])} records, but dataset_info.json says {count}. {DOWNLOAD}"
            )
        return self._indices[file]

    def _place(self, episode: int) -> tuple[Path, int]:
        """The file of an episode, and its index in it."""
        for file, count in self._shards:
            if episode < count:
                return file, episode
            episode -= count
        raise IndexError(episode)

    def _where(self, episode: int) -> str:
        file, number = self._place(episode)
        return f"{file}: record {number} (episode {episode})"

    def _files(self, split: str) -> list[tuple[Path, int]]:
        """The files of a split and how many episodes each has."""
        info = read_json(self._folder / "dataset_info.json", DOWNLOAD)
        kind, splits = info.get("fileFormat", "tfrecord"), {each["name"]: each for each in info.get("splits", [])}
        if kind != "tfrecord":
            raise DataError(
                f"{self._folder} is in the format {kind}, but only tfrecord can be imported. Convert it with `tfds "
                "convert_format`."
            )
        if not splits:
            raise DataError(f"{self._folder}/dataset_info.json names no split. {DOWNLOAD}")
        split = split or ("train" if "train" in splits else next(iter(splits)))
        if split not in splits:
            raise ConfigError(f"--split {split}: the source has {', '.join(splits)}. {nearest(split, splits)}")
        counts = [int(count) for count in splits[split].get("shardLengths", [])]
        template = splits[split].get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        files = []
        for number, count in enumerate(counts):
            name = template.format(
                DATASET=info["name"], SPLIT=split, FILEFORMAT=kind, SHARD_X_OF_Y=f"{number:05d}-of-{len(counts):05d}",
                SHARD_INDEX=f"{number:05d}", NUM_SHARDS=f"{len(counts):05d}",
            )  # fmt: skip
            if not (file := inside(self._folder, name)).exists():
                raise DataError(f"{self._folder} has no {name}, file {number + 1} of {len(counts)}. {DOWNLOAD}")
            files.append((file, count))
        return files


def _version(folder: Path) -> Path:
    """The folder with features.json."""
    if (folder / "features.json").exists():
        return folder
    versions = sorted(file.parent for file in folder.glob("*/features.json"))
    if len(versions) == 1:
        return versions[0]
    names = ", ".join(each.name for each in versions)
    raise DataError(
        f"{folder} contains several versions: {names}. Give the folder of one, e.g. {versions[-1]}." if versions else
        f"{folder} is not a TFDS dataset: it has no features.json."
    )  # fmt: skip


def _leaves(feature: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Name and description of each leaf feature; sequences in a step are left out."""
    if "featuresDict" in feature:
        for name, below in feature["featuresDict"]["features"].items():
            yield from _leaves(below, (*path, name))
    elif "sequence" in feature and path == (STEPS,):
        yield from _leaves(feature["sequence"]["feature"], path)
    elif any(kind in feature for kind in ("tensor", "image", "text")):
        yield "/".join(path), feature


def _shape(about: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one step; -1 where the schema does not state it."""
    return tuple(int(size) for size in about.get("shape", {}).get("dimensions", ()))


def _decoded(values: Any, tensor: dict[str, Any]) -> np.ndarray:
    """The numbers of all steps, (N,) float64. Those stored as bytes have one entry per step."""
    encoding = tensor.get("encoding", "none")
    if encoding == "none":
        return np.fromiter(values, np.float64, len(values))
    parts = [zlib.decompress(each) if encoding == "zlib" else each for each in values]
    return np.frombuffer(b"".join(parts), tensor["dtype"]).astype(np.float64)
