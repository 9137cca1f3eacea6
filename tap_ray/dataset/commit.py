"""Commits files so that a kill or a full disk at any moment leaves either the old dataset or the new one."""

import contextlib
import errno
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence

from tap_ray import storage
from tap_ray.dataset.layout import INFO, TEMP_SUFFIX
from tap_ray.errors import DataError, StorageError
from tap_ray.locks import Lock, acquire


@dataclass(frozen=True)
class Temporary:
    """A file that is already stored in a dataset under a temporary name."""

    name: str
    """Path below the dataset."""


def write_temporary(root: Path, name: str, data: bytes) -> Temporary:
    """Write a file under a temporary name, for a later commit.

    Raises:
        StorageError: the disk refused; the file has been removed.
    """
    path = root / name
    if storage.is_remote(root):
        storage.write(path, data)
        return Temporary(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(path, data)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise storage_error(error, "write", path) from None
    return Temporary(name)


def commit_files(root: Path, contents: Mapping[str, bytes | Temporary]) -> None:
    """Write several files and make them appear in the order given.

    All bytes are on disk under temporary names before the first rename, so a full disk is noticed while nothing has
    changed yet. An object store has no renames: there each file appears when its upload ends. Independent files are
    uploaded at the same time, and temporary files are copied within the store first.

    Args:
        root: folder of the dataset.
        contents: path below `root` -> its bytes, or its temporary file.

    Raises:
        StorageError: the disk refused; the temporary files of this call have been removed.
    """
    if storage.is_remote(root):
        there = {root / name: root / data.name for name, data in contents.items() if isinstance(data, Temporary)}
        _copy_within(there)
        byte_files = {name: data for name, data in contents.items() if isinstance(data, bytes)}
        for step in _steps(byte_files):
            storage.write_all({root / name: byte_files[name] for name in step})
        _discard([*there.values()])
        return
    temporary = {
        root / name: root / (data.name if isinstance(data, Temporary) else f"{name}{TEMP_SUFFIX}")
        for name, data in contents.items()
    }
    byte_files = {root / name: data for name, data in contents.items() if isinstance(data, bytes)}
    path = root
    try:
        for path, data in byte_files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(temporary[path], data)
        for path, temp in temporary.items():
            # If the file is missing, an earlier attempt, which failed later, has renamed it already.
            if path in byte_files or temp.exists():
                os.replace(temp, path)
        for folder in {path.parent for path in temporary}:
            _sync_folder(folder)
    except OSError as error:
        for made in byte_files:
            temporary[made].unlink(missing_ok=True)
        raise storage_error(error, "write", path) from None


def _steps(names: Iterable[str]) -> list[list[str]]:
    """The steps of a commit, whose files may appear in any order: data files; the tables that name them, with derived
    files; info.json.

    A reader that finds derived files that do not match the tables derives them itself.
    """
    rank = {name: 0 if name.startswith("data/") else 2 if name == INFO else 1 for name in names}
    return [found for step in range(3) if (found := [name for name, number in rank.items() if number == step])]


class Background:
    """Runs one job at a time in a thread. The error of a failed job is raised in the next call, and the job is repeated
    in the one after."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._job: Callable[[], None] | None = None
        self._running: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job as soon as the previous one has succeeded."""
        self.settle()
        self._job = job
        self._running = self._pool.submit(job)

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._running is not None and not self._running.done()

    def settle(self) -> None:
        """Wait until the job has ended; raises its error."""
        if self._job is None:
            return
        self._running = self._running or self._pool.submit(self._job)
        try:
            self._running.result()
        except Exception:
            self._running = None
            raise
        self._job = self._running = None

    def stop(self) -> None:
        """Wait for the current job, and begin no other."""
        self._pool.shutdown()


def lock(path: Path) -> Lock:
    """Lock a dataset against other writers until the lock is closed or this process ends.

    Raises:
        DataError: another process is writing it.
        StorageError: the folder cannot be made or opened.
    """
    held = acquire(path, signed=False)  # two datasets of one plan are the same to the byte
    if held is None:
        raise DataError(f"{path} is being written by another process. Wait for it or stop it, then run again.")
    return held


def storage_error(error: OSError, verb: str, path: Path) -> StorageError:
    """The error for a disk that refused: what failed, where, how much space is free, and what to do."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            remedy = "Free some space, or move the dataset to a larger disk, and run the same command again"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            remedy = "Make the folder writable, or choose another with --out, and run the same command again"
        case _:
            remedy = "Fix the disk or choose another folder with --out, and run the same command again"
    return StorageError(
        f"Cannot {verb} {path}: {error.strerror or error}. {free_mb:.1f} MB are free there. {remedy}: it resumes after "
        "the last committed episode."
    )


def _copy_within(copies: Mapping[Path, Path]) -> None:
    """Copy files within an object store, target -> source, all at once, without downloading them."""
    if not copies:
        return
    first = next(iter(copies))
    fs, _ = storage.fs_and_key(first)
    with storage.translate_errors("write", first):
        fs.copy([storage.fs_and_key(old)[1] for old in copies.values()], [storage.fs_and_key(new)[1] for new in copies])


def _discard(paths: Sequence[Path]) -> None:
    """Remove files of an object store; files that cannot be removed are dropped by the next writer."""
    if paths:
        with contextlib.suppress(Exception):
            storage.fs_and_key(paths[0])[0].rm([storage.fs_and_key(path)[1] for path in paths])


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
