"""Converts episodes to Arrow tables: the data table of one episode, the table of episode rows, and the derived
files."""

import json
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray.dataset import layout
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.statistics import mask_stats, merge_stats, stats_to_json, vector_stats
from tap_ray.types import Episode

META_PREFIX = "tap_ray/"
PROGRESS_KEY = b"tap_ray.progress"

Stats = Mapping[str, Mapping[str, np.ndarray]]


def data_table(episode: Episode, header: DatasetHeader, *, task_index: int, first_index: int) -> pa.Table:
    """One episode as rows of a data file: T rows, one column per feature.

    Args:
        episode: checked by `filing.check_episode`.
        header: the dataset's.
        task_index: row of `episode.task` in tasks.parquet.
        first_index: global index of its first frame.
    """
    num_steps = len(episode)
    columns: dict[str, Any] = {
        **{name: _image_array(files) for name, files in _images(episode, header)},
        "timestamp": pa.array((np.arange(num_steps) / header.spec.control_hz).astype(np.float32)),
        "frame_index": pa.array(np.arange(num_steps)),
        "episode_index": pa.array(np.full(num_steps, episode.index)),
        "index": pa.array(np.arange(first_index, first_index + num_steps)),
        "task_index": pa.array(np.full(num_steps, task_index)),
    }
    if header.spec.state:
        columns[layout.STATE] = _vector_array(episode.state)
    if header.spec.action:
        columns[layout.ACTION] = _vector_array(episode.action)
    if header.contact:
        columns[layout.CONTACT] = pa.array(episode.contact.astype(np.float32))
    if episode.mask_png is not None:
        columns[layout.MASK] = _image_array(episode.mask_png)
    if header.num_objects:
        columns[layout.OBJECT_POSE] = _vector_array(episode.object_pose)
    schema = layout.arrow_schema(layout.features(header))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _images(episode: Episode, header: DatasetHeader) -> Iterator[tuple[str, Sequence[bytes]]]:
    yield from zip(layout.image_columns(header.spec), (episode.image_jpeg, *episode.extra_jpeg), strict=True)


def _image_array(files: Sequence[bytes]) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [pa.array(list(files), pa.binary()), pa.nulls(len(files), pa.string())], names=["bytes", "path"]
    )


def _vector_array(values_TD: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(values_TD, np.float32).reshape(len(values_TD), -1)
    kind = layout.list_type(pa.float32(), flat.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=kind)


def episode_stats(episode: Episode, table: pa.Table) -> dict[str, Mapping[str, np.ndarray]]:
    """Statistics of every feature of one episode, in column order."""
    stats: dict[str, Mapping[str, np.ndarray]] = {}
    of_images = iter((episode.image_stats, *episode.extra_stats))
    for name in table.column_names:
        if name == layout.MASK:
            stats[name] = mask_stats(episode.mask_png or [])
        elif name.startswith(layout.IMAGES):
            image_stats = next(of_images)
            stats[name] = {key: image_stats[key] for key in layout.STAT_NAMES}
        else:
            stats[name] = vector_stats(column_array(table[name]))
    return stats


def column_array(column: pa.ChunkedArray) -> np.ndarray:
    """A numeric column as (T,) or (T, D)."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


def episode_row(episode: Episode, stats: Stats, *, file_number: int, first_index: int) -> dict[str, Any]:
    """One row of an episode table: lerobot's columns, then `Episode.meta` under "tap_ray/"."""
    chunk, file = divmod(file_number, layout.CHUNKS_SIZE)
    row: dict[str, Any] = {
        "episode_index": episode.index,
        "tasks": [episode.task],
        "length": len(episode),
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": first_index,
        "dataset_to_index": first_index + len(episode),
    }
    for feature, values in stats.items():
        row |= {f"stats/{feature}/{name}": values[name].tolist() for name in layout.STAT_NAMES}
    row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
    return row | {f"{META_PREFIX}{key}": plain(value) for key, value in episode.meta.items()}


def plain(value: Any) -> Any:
    """Convert a NumPy scalar to a Python scalar."""
    return value.item() if isinstance(value, np.generic) else value


def episodes_schema(row: Mapping[str, Any]) -> pa.Schema:
    """Schema of an episode table with rows like `row`; every table of a dataset has the same."""
    return pa.schema([pa.field(name, _column_type(name, value)) for name, value in row.items()])


def _column_type(name: str, value: Any) -> pa.DataType:
    if name == "tasks":
        return layout.list_type(pa.string())
    if name.startswith("stats/"):
        scalar = pa.int64() if name.endswith("/count") else pa.float64()
        for _ in range(np.ndim(value)):
            scalar = layout.list_type(scalar)
        return scalar
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return kinds[type(value)]


def parquet_bytes(tables: Sequence[pa.Table]) -> bytes:
    """A Parquet file with one row group per table; its bytes depend on the tables only."""
    schema = tables[0].schema
    plain = [name for name, kind in zip(schema.names, schema.types, strict=True) if pa.types.is_primitive(kind)]
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "snappy", "use_dictionary": False, "write_statistics": plain}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
    return sink.getvalue().to_pybytes()


def episodes_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows of some episodes."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def with_progress(table: pa.Table, progress: Mapping[str, Any]) -> pa.Table:
    """An episode table that carries the caller's progress."""
    text = json.dumps(progress, sort_keys=True, allow_nan=False)
    return table.replace_schema_metadata({PROGRESS_KEY: text.encode()})


def progress_of(table: pa.Table) -> dict[str, Any]:
    """The caller's progress that was committed with this episode table."""
    return json.loads((table.schema.metadata or {}).get(PROGRESS_KEY, b"{}"))


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The data derived from the episode tables so far: the contents of info.json, stats.json and tasks.parquet."""

    num_episodes: int = 0
    num_frames: int = 0
    tasks: tuple[str, ...] = ()
    """Tasks in the order of their first appearance."""
    stats: Stats = field(default_factory=dict)

    def add(self, table: pa.Table) -> "Totals":
        """The totals after one more episode table. They are always merged file by file, so that resuming gives the same
        bits."""
        tasks = dict.fromkeys([*self.tasks, *(tasks[0] for tasks in table["tasks"].to_pylist())])
        return Totals(
            num_episodes=self.num_episodes + len(table),
            num_frames=self.num_frames + sum(table["length"].to_pylist()),
            tasks=tuple(tasks),
            stats=merge_stats(table_stats(table), self.stats),
        )

    def files(self, header: DatasetHeader) -> dict[str, bytes]:
        """Path -> bytes of the derived files, in the order in which they are committed."""
        info = layout.info(
            header, num_episodes=self.num_episodes, num_frames=self.num_frames, num_tasks=len(self.tasks)
        )
        return {
            layout.TASKS: tasks_bytes(self.tasks),
            layout.STATS: layout.json_bytes(stats_to_json(self.stats)),
            layout.INFO: layout.json_bytes(info),
        }


def table_stats(table: pa.Table) -> dict[str, dict[str, np.ndarray]]:
    """The statistics in an episode table: feature -> name -> (P, *shape) for its P episodes."""
    stats: dict[str, dict[str, np.ndarray]] = {}
    for column in table.column_names:
        if column.startswith("stats/"):
            _, feature, name = column.split("/")
            stats.setdefault(feature, {})[name] = _nested_array(table[column].combine_chunks())
    return stats


def _nested_array(array: pa.Array) -> np.ndarray:
    """Convert nested lists of equal shape to one array (P, *shape)."""
    shape = [len(array)]
    while pa.types.is_list(array.type):
        shape.append(len(array.flatten()) // max(len(array), 1))
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def tasks_bytes(tasks: Sequence[str]) -> bytes:
    """tasks.parquet: a pandas frame indexed by the task string, as lerobot writes and reads it."""
    frame = pd.DataFrame({"task_index": np.arange(len(tasks))}, index=pd.Index(list(tasks), dtype=object))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame), sink, compression="snappy")
    return sink.getvalue().to_pybytes()
