"""Defines the files and columns of a LeRobotDataset v3.0, as pure functions of one header.

    meta/tap_ray.json                              header: spec, plan, camera, options; written once, never changed
    meta/info.json  meta/stats.json  meta/tasks.parquet      derived from the episode tables, rewritten on each commit
    meta/episodes/chunk-000/file-000.parquet       one row per episode; its rename is the commit of data file 000
    data/chunk-000/file-000.parquet                a fixed number of episodes, one row group each

The one commit point makes recovery simple: an episode exists if and only if an episode table names it. Everything
else is either a leftover (dropped) or derived (written again).
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Mapping

import pyarrow as pa

from tap_ray import storage
from tap_ray.config import digest
from tap_ray.errors import DataError
from tap_ray.specs import RobotSpec, Slot

VERSION = "v3.0"
HEADER_VERSION = 1
CHUNKS_SIZE = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
HEADER, INFO, STATS, TASKS = "meta/tap_ray.json", "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
TEMP_SUFFIX = ".tmp"

IMAGES = "observation.images."
"""Prefix of the column of a camera's images, before the camera's name."""
IMAGE = "observation.images.main"
"""Column of a single camera with the default name."""
MASK = "observation.images.robot_mask"
STATE = "observation.state"
ACTION = "action"
CONTACT = "observation.contact"
OBJECT_POSE = "privileged.object_pose"

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STAT_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

INDEX_FEATURES: dict[str, dict[str, Any]] = {
    name: {"dtype": dtype, "shape": [1], "names": None}
    for name, dtype in {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }.items()
}
"""The columns lerobot adds to every dataset, in its order."""


@dataclass(frozen=True, kw_only=True)
class DatasetHeader:
    """The fixed description of a dataset; a writer with another header is refused."""

    spec: RobotSpec
    """Interface of the one embodiment."""
    plan: Mapping[str, Any]
    """JSON values from which every episode follows (seed, explorer, task ...). The number of episodes must not be part
    of it, so that a dataset can grow."""
    image_size: tuple[int, int]
    """(Y, X) of each camera's images, px."""
    num_objects: int
    """M object slots of `Episode.object_pose`; 0 leaves the column out."""
    robot_mask: bool = False
    """Whether each frame carries the robot's mask."""
    contact: bool = True
    """Whether each frame says if a finger touches an object; False: unknown, and the column is left out."""
    camera: Mapping[str, Any] = field(default_factory=dict)
    """JSON values about the camera (pose, field of view), for people and reports."""
    episodes_per_file: int = 50
    """Episodes in one data file, which is also how many a kill can cost. Part of the header, because it decides
    the bytes."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse. "hash" names the header (`tap_ray.runs.hash_of` reads it)."""
        values = {"version": HEADER_VERSION, **json.loads(json.dumps(asdict(self) | {"spec": self.spec.to_json()}))}
        if self.contact:  # older files lack this field, and their hash must not change
            del values["contact"]
        return {"hash": digest(values), **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = HEADER) -> "DatasetHeader":
        """Inverse of `to_json`. `where` names the file.

        Raises:
            DataError: the header has another version, or invalid fields.
        """
        values: dict[str, Any] = {"contact": True} | {key: value for key, value in data.items() if key != "hash"}
        if values.pop("version", None) != HEADER_VERSION:
            raise DataError(
                f"{where} has version {data.get('version')!r}, but this version of tap_ray reads {HEADER_VERSION}. "
                "Collect the dataset again, or use the version of tap_ray that made it."
            )
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise DataError(
                f"{where} has the fields {sorted(values)}; expected {sorted(known)}. Collect the dataset again."
            )
        values["spec"] = RobotSpec.from_json(values["spec"], where=f"The spec in {where}")
        values["image_size"] = tuple(values["image_size"])
        return cls(**values)


def data_file(file_number: int) -> str:
    """Path, below the dataset, of the n-th data file."""
    chunk, file = divmod(file_number, CHUNKS_SIZE)
    return DATA_PATH.format(chunk_index=chunk, file_index=file)


def episodes_file(file_number: int) -> str:
    """Path, below the dataset, of the n-th episode table."""
    chunk, file = divmod(file_number, CHUNKS_SIZE)
    return EPISODES_PATH.format(chunk_index=chunk, file_index=file)


def image_columns(spec: RobotSpec) -> tuple[str, ...]:
    """Columns of the cameras' images, in order."""
    return tuple(IMAGES + name for name in spec.cameras)


def features(header: DatasetHeader) -> dict[str, dict[str, Any]]:
    """The `features` of info.json: dtype, shape and names of every column, in column order."""
    image_y, image_x = header.image_size
    image_names = ["height", "width", "channels"]
    columns: dict[str, dict[str, Any]] = {
        name: {"dtype": "image", "shape": [image_y, image_x, 3], "names": image_names}
        for name in image_columns(header.spec)
    }
    if header.robot_mask:
        columns[MASK] = {"dtype": "image", "shape": [image_y, image_x, 1], "names": image_names}
    for name, slots in ((STATE, header.spec.state), (ACTION, header.spec.action)):
        if slots:  # a video may have neither states nor actions
            columns[name] = _vector(_names(slots))
    if header.contact:
        columns[CONTACT] = _vector(["contact"])
    if header.num_objects:
        parts = ("x", "y", "z", "qw", "qx", "qy", "qz")
        columns[OBJECT_POSE] = _vector([f"object{m}_{part}" for m in range(header.num_objects) for part in parts])
    return columns | INDEX_FEATURES


def _names(slots: tuple[Slot, ...]) -> list[str]:
    return [slot.name for slot in slots]


def _vector(names: list[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def arrow_schema(columns: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Parquet schema of a data file with these features. Videos are not columns."""
    return pa.schema([pa.field(name, _arrow_type(name, ft)) for name, ft in columns.items()])


def _arrow_type(name: str, feature: Mapping[str, Any]) -> pa.DataType:
    if feature["dtype"] == "image":
        return pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    scalars = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
    if feature["dtype"] not in scalars or len(feature["shape"]) != 1:
        raise DataError(
            f"Feature {name!r} has dtype {feature['dtype']!r} and shape {feature['shape']}. tap_ray reads images and "
            f"one-dimensional features of {', '.join(scalars)}: convert this feature, or omit it."
        )
    scalar, length = scalars[feature["dtype"]], feature["shape"][0]
    return scalar if length == 1 else list_type(scalar, length)


def list_type(of: pa.DataType, length: int = -1) -> pa.DataType:
    """A list type whose child has Parquet's name, so that reading and writing again changes nothing."""
    return pa.list_(pa.field("element", of), length)


def info(header: DatasetHeader, *, num_episodes: int, num_frames: int, num_tasks: int) -> dict[str, Any]:
    """The contents of meta/info.json."""
    return {
        "codebase_version": VERSION,
        "robot_type": header.spec.robot,
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": num_tasks,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(header.spec.control_hz) if header.spec.control_hz % 1 == 0 else header.spec.control_hz,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features(header),
        **({"pseudo_labels": header.plan["pseudo_labels"]} if "pseudo_labels" in header.plan else {}),
    }


def json_bytes(value: Any) -> bytes:
    """JSON text that depends on the value alone (no NaN, no time, keys in the order given)."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path, remedy: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what to do if it cannot be read; "": as for a file of a LeRobot dataset.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(storage.read(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {remedy or f'Is {path.parent.parent} a LeRobot dataset?'}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        again = f"`python -m tap_ray.dataset.lerobot verify {path.parent.parent} --repair` writes it again."
        remedy = remedy or f"If it is a derived file (info, stats), {again}"
        raise DataError(f"{path} is not valid JSON ({error}). {remedy}") from None
