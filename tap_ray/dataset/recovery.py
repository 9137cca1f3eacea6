"""Finds which part of a dataset is committed, and removes leftovers of a killed job."""

import json
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray import storage
from tap_ray.cache import cached
from tap_ray.dataset import layout, row_groups
from tap_ray.dataset.commit import commit_files, lock, storage_error
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.tables import Totals, parquet_bytes
from tap_ray.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file that no commit names, or that a commit could not update."""

    path: Path
    why: str
    replacement: bytes | None
    """Bytes that replace it; None deletes it."""


def read_parquet(path: Path, content: bytes) -> pa.Table:
    """Read a whole Parquet file of metadata and check every value.

    Raises:
        DataError: the file is truncated, damaged or not Parquet.
    """
    with open_parquet(path, BytesIO(content)) as file:
        table = file.read()
        table.validate(full=True)
        return table


@contextmanager
def open_parquet(path: Path, content: Path | BinaryIO | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, to be read inside the `with` block.

    Args:
        path: the file, which errors name.
        content: its bytes, or a local copy of it; None reads `path`.

    Raises:
        DataError: the file is missing, truncated, damaged or not Parquet, even if that is noticed only while a part of
            it is read.
    """
    try:
        with pq.ParquetFile(cached(path) if content is None else content) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path} is missing, but the dataset's metadata refers to it. {_copy_again(path)}") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        size, reason = path.stat().st_size, " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{path} ({size} bytes) is truncated, damaged, or not a Parquet file: {reason}. {_copy_again(path)}"
        ) from None


def _copy_again(path: Path) -> str:
    if path.name == Path(layout.TASKS).name:
        return f"`python -m tap_ray.dataset.lerobot verify {path.parent.parent} --repair` writes it again."
    number = path.name.removeprefix("file-").removesuffix(".parquet")
    return (
        "An interrupted writer never leaves such a file: it was damaged, or copied incompletely. Copy it again, or "
        f"delete every file in data/ and meta/episodes/ from file-{number} on and run the command that collected it "
        "again."
    )


def committed_tables(root: Path) -> list[pa.Table]:
    """Read the episode tables in order: each names one committed data file.

    Raises:
        DataError: a table is unreadable, or one in the middle is missing.
    """
    found = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    for number, path in enumerate(found):
        if path != root / layout.episodes_file(number):
            raise DataError(
                f"{root / layout.episodes_file(number)} is missing, but {path.name} exists. {_copy_again(path)}"
            )
    return [read_parquet(path, content) for path, content in zip(found, storage.read_all(found), strict=True)]


def totals_of(tables: list[pa.Table]) -> Totals:
    """Fold the episode tables."""
    totals = Totals()
    for table in tables:
        totals = totals.add(table)
    return totals


def leftovers(root: Path, header: DatasetHeader, tables: list[pa.Table]) -> list[Leftover]:
    """All leftovers of a killed writer.

    Raises:
        DataError: a committed file is damaged.
    """
    found = [
        Leftover(path=path, why="temporary file of an unfinished write", replacement=None)
        for path in sorted(root.rglob(f"*{layout.TEMP_SUFFIX}"))
        if path.name.startswith(".") or not path.is_dir()  # a folder of `storage.atomic_write`, not somebody's own
    ]
    committed = {root / layout.data_file(number) for number in range(len(tables))}
    for path in sorted((root / "data").glob("chunk-*/file-*.parquet")):
        if path not in committed:
            found.append(Leftover(path=path, why="data file that was never committed", replacement=None))
    if tables:
        found += _superseded(root / layout.data_file(len(tables) - 1), len(tables[-1]))
        others = others_columns(root, header, len(tables))
        found += _stale(root, with_others(root, totals_of(tables).files(header), others))
    return found


def others_columns(root: Path, header: DatasetHeader, num_files: int) -> dict[str, Any]:
    """Features besides those of tap_ray that info.json declares and every data file has: columns that somebody has
    added."""
    try:
        declared = layout.read_json(root / layout.INFO)["features"]
    except (DataError, KeyError, TypeError):
        return {}
    found = {name: feature for name, feature in declared.items() if name not in layout.features(header)}
    for number in range(num_files) if found else ():
        with open_parquet(root / layout.data_file(number)) as file:
            found = {name: feature for name, feature in found.items() if name in file.schema_arrow.names}
    return found


def with_others(root: Path, derived: dict[str, bytes], others: dict[str, Any]) -> dict[str, bytes]:
    """The derived files, with the entries that others have added about their columns."""
    if not others:
        return derived
    info, stats = json.loads(derived[layout.INFO]), json.loads(derived[layout.STATS])
    info["features"] |= others
    if (root / layout.STATS).exists():
        stored = layout.read_json(root / layout.STATS)
        stats = {name: stored[name] for name in others if name in stored} | stats
    return derived | {layout.INFO: layout.json_bytes(info), layout.STATS: layout.json_bytes(stats)}


def _superseded(path: Path, num_episodes: int) -> list[Leftover]:
    """The last data file, if more episodes were added to it than have been committed."""
    if storage.is_remote(path):
        with suppress(pa.ArrowException, OSError):  # `open_parquet` says what is wrong
            if row_groups.footer(row_groups.File(path, storage.version(path))).num_row_groups <= num_episodes:
                return []
    with open_parquet(path) as file:
        if file.num_row_groups <= num_episodes:
            return []
        groups = [file.read_row_group(group) for group in range(num_episodes)]
    return [Leftover(path=path, why="contains episodes that were never committed", replacement=parquet_bytes(groups))]


def _stale(root: Path, derived: dict[str, bytes]) -> list[Leftover]:
    return [
        Leftover(path=root / name, why="does not match the committed episodes", replacement=data)
        for name, data in derived.items()
        if not (root / name).exists() or not _same(storage.read(root / name), data)
    ]


def _same(have: bytes, want: bytes) -> bool:
    """Whether two files have the same contents; JSON may be formatted differently."""
    try:
        return have == want or json.loads(have) == json.loads(want)
    except ValueError:
        return False


def repair(root: Path) -> list[str]:
    """Delete or update every leftover.

    Returns:
        One line for each, e.g. "data/chunk-000/file-003.parquet: data file that was never committed: deleted".

    Raises:
        DataError: it is not a dataset of tap_ray, another process is writing it, or a committed file is damaged (such
            files are never deleted).
        StorageError: the disk refused.
    """
    held = lock(root)
    try:
        return repair_locked(root)
    finally:
        held.close()


def repair_locked(root: Path) -> list[str]:
    """`repair` for a caller that holds the dataset's lock."""
    header = read_header(root)
    lines = []
    for leftover in leftovers(root, header, committed_tables(root)):
        name = str(leftover.path.relative_to(root))
        if leftover.replacement is None:
            _delete(leftover.path)
        else:
            commit_files(root, {name: leftover.replacement})
        lines.append(f"{name}: {leftover.why}: {'deleted' if leftover.replacement is None else 'written again'}")
    return lines


def _delete(path: Path) -> None:
    if path.is_dir():  # of a report, whose video was being written
        storage.remove(path)
        return
    try:
        with storage.translate_errors("delete", path) if storage.is_remote(path) else nullcontext():
            path.unlink()
    except OSError as error:
        raise storage_error(error, "delete", path) from None


def read_header(root: Path) -> DatasetHeader:
    """Read the dataset's header.

    Raises:
        DataError: there is no header, or it has another version.
    """
    path = root / layout.HEADER
    if not path.exists():
        raise DataError(
            f"{path} is missing: {root} was not made by tap_ray, so its robot's conventions are unknown. Import "
            f"it: `python -m jobs.import_dataset --source {root} --mapping FILE --out DATASET` (docs/import.md). If it "
            "was made by tap_ray, copy the whole folder meta/ again."
        )
    data: Any = layout.read_json(path)
    return DatasetHeader.from_json(data, where=str(path))
