"""Checks every rule of LeRobotDataset v3.0 on a dataset: the work of `lerobot verify`."""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from tap_ray.dataset import layout
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import INFO_KEYS, read_tasks, require_committed, require_version
from tap_ray.dataset.recovery import committed_tables, leftovers, open_parquet, read_header, totals_of
from tap_ray.dataset.tables import column_array

Problems = Iterator[str]


class _Source:
    """The parts of a dataset, each read when it is first used. Reading a damaged one raises a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def info(self) -> Mapping[str, Any]:
        return layout.read_json(self.path / layout.INFO)

    @cached_property
    def header(self) -> DatasetHeader:
        return read_header(self.path)

    @cached_property
    def tables(self) -> list[pa.Table]:
        return committed_tables(self.path)

    @cached_property
    def tasks(self) -> pd.DataFrame:
        return read_tasks(self.path)

    @property
    def files(self) -> list[Path]:
        return [self.path / layout.data_file(number) for number in range(len(self.tables))]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule and the problems that were found."""

    name: str
    problems: tuple[str, ...]
    """Empty if the rule holds; at most five are kept."""
    remedy: str


def verify(path: Path) -> list[Rule]:
    """Check every rule, cheap ones first; rules that cannot be checked because an earlier one is broken are left out.

    Raises:
        DataError: there is no dataset at the path.
    """
    repair = f"python -m tap_ray.dataset.lerobot verify {path} --repair"
    copy = "Copy the dataset again from its source, or collect it again."
    stages: list[list[tuple[str, Callable[[_Source], Problems], str]]] = [
        [("something is committed", _committed, "Run the command that collects it again.")],
        [
            ("info.json is complete, of version v3.0", _info, repair),
            ("tap_ray.json has spec, plan and camera", _header, copy),
            ("every committed file can be read", _readable, copy),
        ],
        [
            ("no files of an interrupted writer are left, and derived files are up to date", _no_leftovers, repair),
            ("tasks.parquet is indexed by the sentence, in task_index order", _tasks, repair),
            ("features have dtype, shape and names", _features, repair),
            ("episode rows are contiguous and refer to their files", _episodes, copy),
        ],
        [
            ("columns are exactly the features", _columns, copy),
            ("one row group per episode, index contiguous in file order, timestamp = frame_index / fps", _rows, copy),
            ("numbers are finite", _finite, copy),
            ("every image is complete and has the declared shape", _images, copy),
            ("statistics are complete and merge to stats.json", _stats, repair),
        ],
    ]
    data = _Source(path)
    rules: list[Rule] = []
    for stage in stages:
        rules += [Rule(name=name, problems=_first_five(check(data)), remedy=remedy) for name, check, remedy in stage]
        if any(rule.problems for rule in rules):
            break
    return rules


def _first_five(problems: Problems) -> tuple[str, ...]:
    """The first problems found; if a check cannot continue, the last one says why."""
    found: list[str] = []
    try:
        for problem in problems:
            found.append(problem)
            if len(found) == 5:
                break
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:  # ValueError includes TapRayErrors
        found.append(str(error))
    return tuple(found)


def _committed(data: _Source) -> Problems:
    require_committed(data.path)
    yield from ()


def _info(data: _Source) -> Problems:
    info = data.info
    require_version(data.path, info)
    want = {"splits": {"train": f"0:{info['total_episodes']}"}, "data_path": layout.DATA_PATH}
    for key in (*INFO_KEYS, "robot_type", "chunks_size", "splits", "video_path"):
        if key not in info:
            yield f"{key} is missing"
        elif key in want and info[key] != want[key]:
            yield f"{key} is {info[key]!r}, expected {want[key]!r}"


def _header(data: _Source) -> Problems:
    DatasetHeader.from_json(data.header.to_json())
    yield from ()


def _readable(data: _Source) -> Problems:
    for file in data.files:
        with open_parquet(file):
            pass
    yield from ()


def _no_leftovers(data: _Source) -> Problems:
    for leftover in leftovers(data.path, data.header, data.tables):
        yield f"{leftover.path.relative_to(data.path)}: {leftover.why}"


def _tasks(data: _Source) -> Problems:
    tasks = data.tasks
    if len(tasks) == 0:
        yield "there are no tasks"
    if not all(isinstance(task, str) for task in tasks.index):
        yield f"the index has {tasks.index[:3].tolist()}, expected sentences"
    if list(tasks["task_index"]) != list(range(len(tasks))):
        yield f"task_index is not 0 to {len(tasks) - 1} in order"


def _features(data: _Source) -> Problems:
    for name, feature in data.info["features"].items():
        if not {"dtype", "shape", "names"} <= set(feature):
            yield f"{name} has {sorted(feature)}, expected dtype, shape and names"
        elif feature["dtype"] == "image" and feature["names"] != ["height", "width", "channels"]:
            yield f"{name} has the names {feature['names']}, expected height, width, channels"
    want, have = layout.features(data.header), data.info["features"]
    if {name: have.get(name) for name in want} != want:
        yield "they do not match the header's spec"


def _episodes(data: _Source) -> Problems:
    index = start = 0
    for number, table in enumerate(data.tables):
        place = divmod(number, layout.CHUNKS_SIZE)
        for row in table.to_pylist():
            want = {
                "episode_index": index,
                "dataset_from_index": start,
                "dataset_to_index": start + row["length"],
                "data/chunk_index": place[0],
                "data/file_index": place[1],
                "meta/episodes/chunk_index": place[0],
                "meta/episodes/file_index": place[1],
            }
            yield from (f"episode {index}: {k} is {row[k]}, expected {v}" for k, v in want.items() if row[k] != v)
            index, start = index + 1, start + row["length"]
    info = data.info
    if (info["total_episodes"], info["total_frames"]) != (index, start):
        yield (
            f"info.json says {info['total_episodes']} episodes and {info['total_frames']} frames, but there are "
            f"{index} and {start}"
        )


def _columns(data: _Source) -> Problems:
    want = layout.arrow_schema(layout.features(data.header))
    for file in data.files:
        with open_parquet(file) as parquet:
            have = parquet.schema_arrow
        if lacking := sorted(data.info["features"].keys() - {*have.names, *want.names}):
            yield f"{file.name} lacks {', '.join(lacking)}"
            continue
        if undeclared := sorted(set(have.names) - data.info["features"].keys()):
            yield f"{file.name} has {', '.join(undeclared)}, which info.json does not declare"
        # Columns that others have added are not checked.
        have = pa.schema([field for field in have if field.name in want.names])
        if not have.equals(want, check_metadata=False):
            wrong = [name for name in {*want.names, *have.names} if _type(want, name) != _type(have, name)]
            yield (
                f"{file.name}: "
                + "; ".join(f"{name} is {_type(have, name)}, expected {_type(want, name)}" for name in sorted(wrong))
                if wrong
                else f"{file.name}: columns are in the order {have.names}, expected {want.names}"
            )


def _type(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "absent"


def _rows(data: _Source) -> Problems:
    fps, num_tasks = data.info["fps"], len(data.tasks)
    for episode, group in _episode_groups(data, list(layout.INDEX_FEATURES)):
        name, steps = f"episode {episode['episode_index']}", episode["length"]
        if group is None or len(group) != steps:
            yield f"{name}: row group has {0 if group is None else len(group)} rows, expected {steps}"
            continue
        columns = {key: column_array(group[key]) for key in layout.INDEX_FEATURES}
        frame = np.arange(steps)
        wrong = {
            "frame_index": (columns["frame_index"] != frame).any(),
            "episode_index": (columns["episode_index"] != episode["episode_index"]).any(),
            "index": (columns["index"] != episode["dataset_from_index"] + frame).any(),
            "timestamp": not np.allclose(columns["timestamp"], frame / fps, atol=1e-4),
            "task_index": ((columns["task_index"] < 0) | (columns["task_index"] >= num_tasks)).any(),
        }
        yield from (f"{name}: {key} violates the rule" for key, broken in wrong.items() if broken)


def _finite(data: _Source) -> Problems:
    numeric = [name for name, ft in layout.features(data.header).items() if ft["dtype"].startswith("float")]
    for episode, group in _episode_groups(data, numeric):
        columns = {} if group is None else {name: column_array(group[name]) for name in numeric}
        for name, values in columns.items():
            if not np.isfinite(values).all():
                yield f"episode {episode['episode_index']}: {name} contains NaN or infinity"


def _images(data: _Source) -> Problems:
    features = layout.features(data.header)
    for name in [name for name, ft in features.items() if ft["dtype"] == "image"]:
        for episode, group in _episode_groups(data, [name]):
            files = group[name].combine_chunks().field("bytes").to_pylist() if group is not None else []
            for frame, image in enumerate(files):
                if problem := _image_problem(image, features[name]["shape"]):
                    yield f"episode {episode['episode_index']}, frame {frame}: {name} {problem}"


def _image_problem(data: bytes | None, shape: list[int]) -> str:
    if data is None:
        return "has no bytes"
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            have = [image.height, image.width, len(image.getbands())]
    except (UnidentifiedImageError, OSError) as error:
        return f"cannot be decoded: {error}"
    return "" if have == shape else f"has the shape {have}, expected {shape}"


def _stats(data: _Source) -> Problems:
    features = layout.features(data.header)
    stored = layout.read_json(data.path / layout.STATS)
    if lacking := sorted(features.keys() - stored.keys()) + sorted(stored.keys() - data.info["features"].keys()):
        yield f"stats.json has {lacking} too many or too few"
        return
    merged = totals_of(data.tables).stats
    for name, feature in features.items():
        shape = (3, 1, 1) if feature["dtype"] == "image" else tuple(feature["shape"])
        for key in layout.STAT_NAMES:
            value = np.array(stored[name].get(key, np.nan))
            if value.shape != ((1,) if key == "count" else shape):
                yield f"{name}/{key} has shape {value.shape}, expected {shape}"
            elif not np.allclose(value, merged[name][key], rtol=1e-6, atol=1e-9):
                yield (
                    f"{name}/{key} is {value.ravel()[:3]}, but merging the episodes gives "
                    f"{merged[name][key].ravel()[:3]}"
                )
        if feature["dtype"] == "image" and not 0 <= np.min(stored[name]["min"]) <= np.max(stored[name]["max"]) <= 1:
            yield f"{name}: statistics are outside [0, 1]"


def _episode_groups(data: _Source, columns: list[str]) -> Iterator[tuple[dict[str, Any], pa.Table | None]]:
    """Each episode row with its row group; None if the file has no such group."""
    for number, table in enumerate(data.tables):
        keep = ["episode_index", "length", "dataset_from_index"]
        with open_parquet(data.path / layout.data_file(number)) as file:
            for group, episode in enumerate(table.select(keep).to_pylist()):
                yield episode, file.read_row_group(group, columns=columns) if group < file.num_row_groups else None
