"""Writes a dataset, each episode exactly once, despite kills and full disks.

    with DatasetWriter(path, header) as writer:
        for index in range(writer.committed, num_episodes):
            writer.append(episode_of(index))

Episodes gather in memory and are committed a file at a time (layout.py says how); a kill costs at most
`header.episodes_per_file` of them. The same episodes give the same bytes in every file, however often the writing was
interrupted, and also when a finished dataset is made longer later.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import pyarrow as pa

from tap_ray import storage
from tap_ray.config import RENAMED_ANYWHERE, differences, keys_renamed
from tap_ray.dataset import layout, tables
from tap_ray.dataset.commit import Background, Temporary, commit_files, lock
from tap_ray.dataset.filing import End, Written, filed
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.recovery import committed_tables, open_parquet, others_columns, repair_locked, totals_of
from tap_ray.errors import DataError, StorageError
from tap_ray.locks import LOCK_FILE
from tap_ray.types import Episode


class _Added(NamedTuple):
    """An episode that is not committed yet."""

    table: pa.Table
    row: dict[str, Any]
    progress: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _File:
    """The file that is being filled, and the totals of the files before it."""

    number: int
    totals: tables.Totals
    progress: Mapping[str, Any]
    """Progress that was given with the last episode before this file."""
    added: list[_Added]

    @property
    def end(self) -> End:
        """The end of the dataset, which determines the place of the next episode."""
        return End(
            file_number=self.number,
            in_file=len(self.added),
            num_episodes=self.totals.num_episodes + len(self.added),
            num_frames=self.totals.num_frames + sum(each.row["length"] for each in self.added),
            tasks=tuple(dict.fromkeys([*self.totals.tasks, *(each.row["tasks"][0] for each in self.added)])),
        )


class DatasetWriter:
    """Appends episodes in index order to a new dataset, or to an existing one with the same header."""

    def __init__(self, path: Path | str, header: DatasetHeader) -> None:
        """Open and lock the dataset, and repair it after a kill.

        Args:
            path: folder of the dataset; made if it is missing.
            header: header of the dataset.

        Raises:
            DataError: the folder holds something else, or was made with another header (each difference is named),
                or another process writes it now, or a committed file is damaged.
            StorageError: the disk refused.
        """
        self.path = storage.to_path(path)
        self.header = header
        self._lock = lock(self.path)
        self._background = Background()
        try:
            _claim(self.path, header)
            repair_locked(self.path)
            self._load()
        except BaseException:
            self._unlock()
            raise

    def _load(self) -> None:
        found = committed_tables(self.path)
        progress = tables.progress_of(found[-1]) if found else {}
        self._schema = found[0].schema.remove_metadata() if found else None
        added: list[_Added] = []
        if found and len(found[-1]) < self.header.episodes_per_file:
            rows = found.pop().to_pylist()
            with open_parquet(self.path / layout.data_file(len(found))) as file:
                added = [_Added(file.read_row_group(group), row, progress) for group, row in enumerate(rows)]
        # All state that changes is in here and changes in one operation, so that it is consistent after any Ctrl-C.
        self._file = _File(number=len(found), totals=totals_of(found), progress=progress, added=added)
        self._others = others_columns(self.path, self.header, len(found))
        self._committed = self.appended

    @property
    def committed(self) -> int:
        """Number of committed episodes; waits for a running commit."""
        self._background.settle()
        return self._committed

    @property
    def appended(self) -> int:
        """Number of episodes so far, committed or not: the index of the next one."""
        return self._file.totals.num_episodes + len(self._file.added)

    @property
    def progress(self) -> dict[str, Any]:
        """The progress that the caller gave with the last episode; {} in a new dataset."""
        return dict(self._file.added[-1].progress if self._file.added else self._file.progress)

    def append(self, episode: Episode, progress: Mapping[str, Any] | None = None) -> None:
        """Add the next episode. A full file is committed in the background, while the next one is filled.

        Args:
            episode: its index must be `appended`.
            progress: small JSON values that are committed together with this episode and come back as `progress`
                on resume, e.g. the next attempt and the dropped ones' reasons. None keeps the last.

        Raises:
            DataError: the episode does not fit the dataset.
            StorageError: the disk refused, now or for the previous file; all committed data is intact.
        """
        self.require_known_columns()
        if episode.index != self.appended:
            raise DataError(
                f"{self.path} expects episode {self.appended} next; got episode {episode.index}. Write each index "
                "once, in order."
            )
        self._roll_over_if_full()  # only if the disk refused the last time
        table, row = filed(episode, self.header, self._file.end.place(episode.task), self._schema)
        self._schema = self._schema or tables.episodes_schema(row)
        self._file.added.append(_Added(table, row, self.progress if progress is None else dict(progress)))
        self._roll_over_if_full()

    def require_known_columns(self) -> None:
        """Raise a DataError if somebody has added columns to the dataset, which new episodes would lack."""
        if self._others:
            raise DataError(
                f"{self.path} has columns that tap_ray does not know: {', '.join(self._others)}. New episodes would "
                "lack them. Collect into another folder (--out), or remove the columns from the data and from "
                "info.json."
            )

    @property
    def end(self) -> End:
        """The end of the dataset, which determines the place of the next episode."""
        return self._file.end

    @property
    def schema(self) -> pa.Schema | None:
        """Schema of the episode tables; None in a new dataset."""
        return self._schema

    @property
    def busy(self) -> bool:
        """Whether a commit is running."""
        return self._background.busy

    def commit_files(self, files: Sequence[tuple[Written, Mapping[str, Any]]]) -> None:
        """Commit, in the background, files that other processes have written; there must be no uncommitted episodes
        here.

        Args:
            files: the next files in order, each with the progress of its last episode; only the last file may be partly
                filled.

        Raises:
            StorageError: the disk refused, now or for a previous commit; all committed data is intact.
        """
        contents: dict[str, bytes | Temporary] = {}
        file, schema = self._file, self._schema
        for written, progress in files:
            first = written.table["episode_index"][0].as_py()
            assert (written.number, first) == (file.number, file.totals.num_episodes), "files come in order, once"
            schema = schema or written.table.schema
            table = tables.with_progress(written.table, progress)
            contents[layout.data_file(file.number)] = written.data
            contents[layout.episodes_file(file.number)] = tables.parquet_bytes([table])
            file = _File(number=file.number + 1, totals=file.totals.add(table), progress=progress, added=[])
        ready = partial(self._put, contents | file.totals.files(self.header), file.totals.num_episodes)
        self._background.start(ready)
        self._file, self._schema = file, schema
        if files and len(files[-1][0].table) < self.header.episodes_per_file:
            self._background.settle()
            self._load()

    def commit(self) -> None:
        """Commit every appended episode now (also done by `close`, and whenever a file is full).

        Raises:
            StorageError: the disk refused; all committed data is intact.
        """
        if self.committed < self.appended:
            self._commit()
            self._background.settle()

    def _roll_over_if_full(self) -> None:
        file = self._file
        if len(file.added) == self.header.episodes_per_file:
            self._file = _File(number=file.number + 1, totals=self._commit(), progress=self.progress, added=[])

    def _commit(self) -> tables.Totals:
        """Begin to write the current file; returns its state after the commit."""
        assert self._schema is not None, "set by the first append"
        file = self._file
        rows = tables.episodes_table([each.row for each in file.added], self._schema)
        table = tables.with_progress(rows, self.progress)
        totals = file.totals.add(table)
        contents: dict[str, bytes | Temporary] = {
            layout.data_file(file.number): tables.parquet_bytes([each.table for each in file.added]),
            layout.episodes_file(file.number): tables.parquet_bytes([table]),
        }
        self._background.start(partial(self._put, contents | totals.files(self.header), self.appended))
        return totals

    def _put(self, contents: dict[str, bytes | Temporary], num_episodes: int) -> None:
        self._lock.require()
        commit_files(self.path, contents)
        self._committed = num_episodes

    def close(self) -> None:
        """Commit the remaining episodes and unlock the dataset."""
        try:
            self.commit()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        self._background.stop()
        self._lock.close()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, StorageError):
            self._unlock()
        else:
            self.close()


ADD_OR_RENAME = "Name another folder with --out, or use the old values to add episodes to this one."


def require_same_header(path: Path, header: DatasetHeader, cure: str = ADD_OR_RENAME) -> None:
    """Raise DataError, with the cure at its end, if an existing dataset has another header."""
    if lines := differences(_unhashed(layout.read_json(path / layout.HEADER)), _unhashed(header.to_json())):
        raise DataError("\n  ".join([f"{path} was made with another plan, spec or camera:", *lines]) + f"\n{cure}")


def _claim(path: Path, header: DatasetHeader) -> None:
    """Write the header into a new dataset, or compare it with the existing one."""
    if (path / layout.HEADER).exists():
        require_same_header(path, header)
        return
    ours = (layout.TEMP_SUFFIX, LOCK_FILE)
    if strangers := [entry for entry in path.rglob("*") if entry.is_file() and not entry.name.endswith(ours)]:
        raise DataError(
            f"{path} contains {strangers[0].relative_to(path)} but no {layout.HEADER}, so it is not a dataset of "
            "tap_ray. Name another folder with --out."
        )
    commit_files(path, {layout.HEADER: layout.json_bytes(header.to_json())})


def _unhashed(header: Mapping[str, Any]) -> dict[str, Any]:
    return keys_renamed({key: value for key, value in header.items() if key != "hash"}, RENAMED_ANYWHERE)
