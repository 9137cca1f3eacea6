"""Reads a dataset: its metadata at once, its episodes one by one."""

import contextlib
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray import storage
from tap_ray.cache import ReplacedError
from tap_ray.dataset import layout, row_groups
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.recovery import committed_tables, open_parquet, read_header, totals_of
from tap_ray.dataset.statistics import merge_stats, stats_from_json
from tap_ray.dataset.tables import META_PREFIX, column_array, table_stats
from tap_ray.errors import DataError, nearest
from tap_ray.specs import RobotSpec
from tap_ray.types import Episode

T = TypeVar("T")
AHEAD = 16
"""Number of episodes that are fetched from an object store at once; 16 times as many without images."""
OWN_COLUMNS = frozenset(
    ("episode_index", "length", "dataset_from_index", "dataset_to_index", "instruction", "file", "row_group")
)
"""Columns of `DatasetInfo.episodes` besides the keys of `Episode.meta`."""
DAMAGED = (pa.ArrowException, OSError, IndexError)
"""Exceptions that are raised for damaged files."""
INFO_KEYS = ("codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "data_path")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A dataset's metadata, without its frames. Picklable and small."""

    path: Path
    header: DatasetHeader
    info: Mapping[str, Any]
    """meta/info.json."""
    tasks: tuple[str, ...]
    """Sentences by task_index."""
    episodes: pd.DataFrame
    """One row per episode: episode_index, instruction, length, file, row_group, and the keys of `Episode.meta`."""
    stats: Mapping[str, Mapping[str, np.ndarray]]
    """meta/stats.json: feature -> min, max, mean, std, count, q01 ... q99."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of an object store's data files when the dataset was opened or seen to grow; see `storage.versions`."""

    @property
    def spec(self) -> RobotSpec:
        """Interface of the robot that made it."""
        return self.header.spec

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64 steps of each episode."""
        return self.episodes["length"].to_numpy()

    def __len__(self) -> int:
        return len(self.episodes)


def open_dataset(path: Path | str) -> DatasetInfo:
    """Read a dataset's metadata and check that it can be used.

    Raises:
        DataError: it is missing, empty, of another version, truncated, or its features do not fit its spec.
    """
    path = storage.to_path(path)
    if not (path / "meta").is_dir():
        state = "has no folder meta/" if path.exists() else "does not exist"
        raise DataError(
            f"There is no dataset at {path}: it {state}. Collect one with `python -m jobs.collect_play --out {path}`, "
            "or give the folder that a collecting job printed as its last line."
        )
    require_committed(path)
    # Read before the tables: a writer updates it after them, so it never counts more episodes than they have.
    info = layout.read_json(path / layout.INFO) if (path / layout.INFO).exists() else None
    if info is not None:
        require_version(path, info)
    header = read_header(path)
    tables = committed_tables(path)
    episodes = _episode_frame(tables)
    info, tasks, stats = _derived(path, info, header, tables)
    _require_features(path, info, header)
    return DatasetInfo(
        path=path,
        header=header,
        info=info,
        tasks=tasks,
        episodes=episodes,
        stats=stats,
        versions=storage.versions(path / "data"),
    )


def _derived(
    path: Path, info: Mapping[str, Any] | None, header: DatasetHeader, tables: Sequence[pa.Table]
) -> tuple[Mapping[str, Any], tuple[str, ...], Mapping[str, Any]]:
    """Contents of info.json, tasks and statistics, as derived from the committed tables.

    An active or killed writer may leave these files older than the tables, or some of them newer than what was read:
    then they are derived again.
    """
    num_episodes, num_frames = sum(map(len, tables)), sum(sum(table["length"].to_pylist()) for table in tables)
    if info is not None and info["total_episodes"] > num_episodes:
        raise DataError(
            f"{path}: info.json says {info['total_episodes']} episodes, but the episode tables contain "
            f"{num_episodes}: some are missing. Copy the dataset again, or run `python -m tap_ray.dataset.lerobot "
            f"verify {path} --repair` to continue without them."
        )
    if info is not None and info["total_episodes"] == num_episodes:
        tasks, stats = read_tasks(path), stats_from_json(layout.read_json(path / layout.STATS))
        if int(stats["index"]["count"][0]) == num_frames and len(tasks) == info["total_tasks"]:
            return info, tuple(tasks.index), stats
    totals = totals_of([*tables])
    known = info if info is not None else {"features": layout.features(header)}
    fresh = layout.info(header, num_episodes=num_episodes, num_frames=num_frames, num_tasks=len(totals.tasks))
    return {**fresh, "features": known["features"]}, totals.tasks, totals.stats


def as_dataset(data: DatasetInfo | Path) -> DatasetInfo:
    """Open a dataset, unless it is open already."""
    return data if isinstance(data, DatasetInfo) else open_dataset(data)


def require_committed(path: Path) -> None:
    """Raise a DataError if no episode has been committed."""
    if not any((path / "meta/episodes").glob("chunk-*/file-*.parquet")):
        raise DataError(
            f"{path} is empty: no episode has been committed yet. Run the command that collects it again: it resumes "
            "where it was interrupted."
        )


def require_version(path: Path, info: Mapping[str, Any]) -> None:
    """Raise a DataError unless info.json is of the version this project reads."""
    version = info.get("codebase_version")
    if version != layout.VERSION:
        raise DataError(
            f"{path} is a LeRobot dataset of version {version!r}, but tap_ray reads {layout.VERSION!r}. Import "
            f"it: `python -m jobs.import_dataset --source {path} --mapping FILE --out DATASET` (docs/import.md)."
        )
    if missing := [key for key in INFO_KEYS if key not in info]:
        raise DataError(
            f"{path / layout.INFO} lacks {', '.join(missing)}. Copy the dataset again, or collect it again."
        )


def _require_features(path: Path, info: Mapping[str, Any], header: DatasetHeader) -> None:
    want, have = layout.features(header), info["features"]  # columns that others have added are ignored
    wrong = [name for name, feature in want.items() if feature != have.get(name)]
    if wrong:
        raise DataError(
            f"{path}: the features of info.json do not match {layout.HEADER}:\n  "
            + "\n  ".join(sorted(f"{name}: info.json {have.get(name)}, header {want[name]}" for name in wrong))
            + f"\nRun `python -m tap_ray.dataset.lerobot verify {path} --repair` to write info.json again."
        )


def read_tasks(path: Path) -> pd.DataFrame:
    """tasks.parquet: a frame indexed by the task's sentence, column task_index."""
    with open_parquet(path / layout.TASKS) as file:
        return file.read().to_pandas()


def _episode_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Episode tables without the statistics, with the file and the row group of each episode."""
    keep = [name for name in tables[0].column_names if not name.startswith(("stats/", "meta/"))]
    frame = pa.concat_tables([table.select(keep) for table in tables]).to_pandas()
    frame["instruction"] = [tasks[0] for tasks in frame.pop("tasks")]
    frame["file"] = frame.pop("data/chunk_index") * layout.CHUNKS_SIZE + frame.pop("data/file_index")
    frame["row_group"] = frame.groupby("file").cumcount()
    return frame.rename(columns=lambda name: name.removeprefix(META_PREFIX))


def stats_of(dataset: DatasetInfo, episodes: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of these episodes, (E,) indices, merged from their own: feature -> name -> array, as
    `DatasetInfo.stats`."""
    tables = pa.concat_tables(committed_tables(dataset.path)).take(pa.array(episodes))
    return merge_stats(table_stats(tables))


def read_episode(dataset: DatasetInfo, index: int, columns: Sequence[str] | None = None) -> Episode:
    """Read one episode as it was written, except for `image_stats`, which is empty (see `stats_of`).

    Args:
        dataset: from `open_dataset`.
        index: episode index.
        columns: features to read, e.g. `layout.ACTION`; all others are empty (masks: None). None reads all.

    Raises:
        DataError: see `read_columns`.
    """
    row = _row(dataset, index)
    found, steps = _read(dataset, row, columns), int(row["length"])
    first, *others = layout.image_columns(dataset.spec)
    return Episode(
        index=index,
        task=str(row["instruction"]),
        image_jpeg=found.get(first, ()),
        mask_png=found.get(layout.MASK),
        state=found.get(layout.STATE, np.zeros((steps, 0), np.float32)),
        action=found.get(layout.ACTION, np.zeros((steps, 0), np.float32)),
        contact=found.get(layout.CONTACT, np.zeros(0, np.float32)).reshape(-1) > 0.5,
        object_pose=found.get(layout.OBJECT_POSE, np.zeros((steps, 0, 7), np.float32)).reshape(steps, -1, 7),
        image_stats={},
        meta={name: value for name, value in row.items() if name not in OWN_COLUMNS},
        extra_jpeg=[found[name] for name in others if name in found],
    )


def read_columns(dataset: DatasetInfo, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Read columns of one episode, as stored in the file.

    Args:
        dataset: from `open_dataset`.
        index: episode index.
        columns: features to read, e.g. `layout.ACTION`; None reads all that tap_ray knows.

    Returns:
        Feature -> (T,) or (T, D) array, or for an image a list of T files as bytes.

    Raises:
        DataError: there is no such episode or feature, the file is truncated, or a state or action is NaN.
    """
    return _read(dataset, _row(dataset, index), columns)


def read_table(dataset: DatasetInfo, index: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of one episode as an Arrow table.

    Raises:
        DataError: there is no such episode, or the file is damaged.
    """
    row = _row(dataset, index)
    return _read_row_group(dataset, int(row["file"]), int(row["row_group"]), columns)


def _row(dataset: DatasetInfo, index: int) -> dict[str, Any]:
    if not 0 <= index < len(dataset):
        raise DataError(f"{dataset.path} has episodes 0 to {len(dataset) - 1}; there is no episode {index}.")
    row = dataset.episodes.iloc[index]
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


def _read(dataset: DatasetInfo, row: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    index, known = row["episode_index"], layout.features(dataset.header)
    if columns is not None:  # a video has no actions and maybe no states: these are empty then
        columns = [name for name in columns if name in known or name not in (layout.STATE, layout.ACTION)] or ["index"]
    for name in columns or ():
        if name not in known:
            raise DataError(f"{dataset.path} has no feature {name!r}. {nearest(name, known)}")
    columns = columns or list(known)
    table = _read_row_group(dataset, int(row["file"]), int(row["row_group"]), columns)
    missing = set(columns) - set(table.column_names)
    if missing or len(table) != row["length"]:
        raise DataError(
            f"{dataset.path}: episode {index} has {len(table)} frames and lacks {sorted(missing) or 'no feature'}; its "
            f"metadata says {row['length']}. Details: `python -m tap_ray.dataset.lerobot verify {dataset.path}`."
        )
    arrays = {name: _column(table[name]) for name in table.column_names}
    for name in (layout.STATE, layout.ACTION):
        if name in arrays and not np.isfinite(arrays[name]).all():
            raise DataError(
                f"{dataset.path}: episode {index} has NaN or infinite numbers in {name!r}. It cannot be used for "
                "training. Collect the dataset again, or omit this episode."
            )
    return arrays


def read_episodes(
    dataset: DatasetInfo, indices: Iterable[Any], columns: Sequence[str] | None = None
) -> Iterator[Episode]:
    """Read episodes one after the other; episodes of an object store are fetched `AHEAD` at a time."""
    rest, images = map(int, indices), columns is None or any(name.startswith(layout.IMAGES) for name in columns)
    while batch := list(islice(rest, AHEAD if images else 16 * AHEAD)):
        if storage.is_remote(dataset.path):
            with contextlib.suppress(*DAMAGED):  # `read_episode` says which one
                _fetch(dataset, batch, columns or list(layout.features(dataset.header)))
        for index in batch:
            yield read_episode(dataset, index, columns)


def require_readable(dataset: DatasetInfo) -> None:
    """Read every state and action (no image), so that a damaged file is found before a job starts.

    Raises:
        DataError: a file is missing or truncated, or contains NaN.
    """
    columns = [name for name in (layout.STATE, layout.ACTION) if name in layout.features(dataset.header)]
    if storage.is_remote(dataset.path):
        for _ in read_episodes(dataset, range(len(dataset)), columns):
            pass
        return
    for number, rows in dataset.episodes.groupby("file"):  # whole files, which is ten times faster
        with open_parquet(dataset.path / layout.data_file(int(number))) as file:  # pyright: ignore[reportArgumentType]
            table = file.read(columns=columns)
        whole = table.num_columns == len(columns) and len(table) == rows["length"].sum()
        if not whole or not all(np.isfinite(column_array(table[name])).all() for name in columns):
            for index in rows["episode_index"]:  # it says which one, and what to do
                read_episode(dataset, int(index), columns)


def _column(column: pa.ChunkedArray) -> Any:
    if pa.types.is_struct(column.type):
        return column.combine_chunks().field("bytes").to_pylist()
    return column_array(column)


def footer(dataset: DatasetInfo, number: int) -> pq.FileMetaData:
    """The Parquet footer of the n-th data file, which describes its row groups.

    Raises:
        DataError: the file is missing or damaged.
        StorageError: the storage refused.
    """
    path = dataset.path / layout.data_file(number)
    with _translate_errors(path, "its footer"):
        if storage.is_remote(path):
            return _following(dataset, lambda: row_groups.footer(_remote(dataset, number)))
        return _footer(path, path.stat().st_mtime_ns)


def _read_row_group(dataset: DatasetInfo, number: int, group: int, columns: Sequence[str]) -> pa.Table:
    path = dataset.path / layout.data_file(number)
    with _translate_errors(path, f"row group {group}"):
        if storage.is_remote(path):
            return _following(dataset, lambda: row_groups.read_row_group(_remote(dataset, number), group, columns))
        with pq.ParquetFile(path, metadata=_footer(path, path.stat().st_mtime_ns)) as file:
            return file.read_row_group(group, columns=list(columns))


@contextlib.contextmanager
def _translate_errors(path: Path, part: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        with open_parquet(path):  # raises an error if the whole file is damaged
            pass
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path}, {part}, is damaged: {reason}. Copy the dataset again.") from None


@lru_cache(maxsize=64)
def _footer(path: Path, _mtime_ns: int) -> pq.FileMetaData:
    """A local file's footer, parsed once for its many episodes."""
    with open_parquet(path) as file:
        return file.metadata


def _fetch(dataset: DatasetInfo, indices: Sequence[int], columns: Sequence[str]) -> None:
    rows = dataset.episodes.iloc[[index for index in indices if 0 <= index < len(dataset)]]
    places = [(int(number), int(group)) for number, group in zip(rows["file"], rows["row_group"], strict=True)]
    _following(dataset, lambda: row_groups.fetch([(_remote(dataset, n), group) for n, group in places], columns))


def _remote(dataset: DatasetInfo, number: int) -> row_groups.File:
    name = layout.data_file(number)
    path = dataset.path / name
    return row_groups.File(path, dataset.versions.get(name.removeprefix("data/")) or storage.version(path))


def _following(dataset: DatasetInfo, read: Callable[[], T]) -> T:
    """Call `read`; a data file that has grown since the dataset was opened is read in its current version.

    Raises:
        DataError: a file has other episodes now.
    """
    while True:
        try:
            return read()
        except ReplacedError as error:
            name = str(error.path.relative_to(dataset.path / "data"))
            old, new = (row_groups.File(error.path, v) for v in (error.version, storage.version(error.path)))
            files = [layout.data_file(int(number)).removeprefix("data/") for number in dataset.episodes["file"]]
            lengths = dataset.lengths[[file == name for file in files]]
            if not _same_groups(old, row_groups.footer(new), lengths):
                raise DataError(
                    f"The episodes of {error.path} have changed since the dataset was opened. Run the same command "
                    "again to read the current ones."
                ) from None
            dataset.versions[name] = new.version


def _same_groups(old: row_groups.File, now: pq.FileMetaData, lengths: np.ndarray) -> bool:
    """Whether the first row groups are those of the older version, as far as that is known, with the same lengths."""
    if [now.row_group(group).num_rows for group in range(min(len(lengths), now.num_row_groups))] != lengths.tolist():
        return False
    try:
        then = row_groups.footer(old)
    except ReplacedError:  # its footer was never read
        return True
    return all(then.row_group(group).equals(now.row_group(group)) for group in range(len(lengths)))
