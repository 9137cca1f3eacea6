"""Appends lines to files that grow while a job runs: metrics.jsonl, episodes.jsonl.

On a disk such a file is appended to. An object store cannot append, so there each addition is a small object beside it:

    metrics.jsonl                               lines of earlier starts of the job; all lines when it has ended
    metrics.jsonl.parts/<start>-<number>        one addition; names sort in the order of the additions
    metrics.jsonl.parts/<start>-<number>.whole  all lines up to this addition, while metrics.jsonl is rewritten

A reader sees each line exactly once, also after a kill at any moment: a `.whole` replaces the file and the parts
before it.
"""

import contextlib
import os
import time
import uuid
from pathlib import Path

from tap_ray import storage

PARTS = ".parts"
WHOLE = ".whole"
MANY = 64
"""Number of additions of one process after which they are joined into the file."""

_lives: dict[tuple[int, Path], "_Life"] = {}
"""(process id, file) -> its additions; the process id is part of the key because a fork is another process."""
_kept: dict[Path, dict[str, bytes]] = {}
"""File -> parts that this process has added or read, so that they are not read again."""


class _Life:
    """The additions of this process to a file."""

    def __init__(self, file: Path) -> None:
        newest = max((int(name.partition("-")[0]) for name in part_names(file)), default=0)
        self._name = f"{max(time.time_ns(), newest + 1):020d}-{uuid.uuid4().hex[:8]}"
        self.number = 0
        self.tried = b""
        """Data that may already be stored under the next number, after a failed upload."""

    @property
    def next(self) -> str:
        return f"{self._name}-{self.number:08d}"


def append(file: Path, text: str) -> None:
    """Append whole lines to a file; they are stored when this returns. Appending the same again after an error adds
    nothing twice.

    Raises:
        StorageError: the storage refused.
    """
    if not text:
        return
    if not storage.is_remote(file):
        with storage.translate_errors("write", file), open(file, "a") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        return
    if (life := _life(file)).number >= MANY:
        join(file)
        life = _life(file)
    data = text.encode()
    if life.tried not in (b"", data):
        life.number += 1
    life.tried = data
    storage.write(_folder(file) / life.next, data)
    _kept.setdefault(file, {})[life.next] = data
    life.number, life.tried = life.number + 1, b""


def read(file: Path) -> bytes:
    """Read all lines in the order in which they were added; the last one may be truncated by a kill.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused.
    """
    if not storage.is_remote(file):
        return file.read_bytes()
    while True:
        parts = part_names(file)
        if not parts:
            return storage.read(file)
        whole = max((name for name in parts if name.endswith(WHOLE)), default="")
        current, kept = [name for name in parts if name >= whole], _kept.get(file, {})
        with contextlib.suppress(FileNotFoundError):  # joined meanwhile
            old = b"" if whole or not file.exists() else storage.read(file)
            new = [name for name in current if name not in kept]
            kept = kept | dict(zip(new, storage.read_all([_folder(file) / name for name in new]), strict=True))
            # Parts are removed before the file is replaced: if they are still there, the old file was read.
            if {*current} <= {*part_names(file)}:
                _kept[file] = {name: kept[name] for name in current if not name.endswith(WHOLE)}
                return old + b"".join(kept[name] for name in current)


def exists(file: Path) -> bool:
    """Whether anything was ever appended."""
    return file.exists() or (storage.is_remote(file) and bool(part_names(file)))


def join(file: Path) -> None:
    """Join all additions into one file; on a local disk they are one already.

    Raises:
        StorageError: the storage refused.
    """
    if storage.is_remote(file) and part_names(file):
        rewrite(file, read(file))


def rewrite(file: Path, data: bytes) -> None:
    """Replace a file and all its additions; no other process may append at the same time.

    Raises:
        StorageError: the storage refused.
    """
    parts = part_names(file) if storage.is_remote(file) else []
    whole = f"{parts[-1].removesuffix(WHOLE)}{WHOLE}" if parts else ""
    _lives.pop((os.getpid(), file), None)
    if parts:
        storage.write(_folder(file) / whole, data)
        _remove(file, [name for name in parts if name != whole])
    storage.write(file, data)
    if parts:
        _remove(file, [whole])


def _life(file: Path) -> _Life:
    key = (os.getpid(), file)
    _lives[key] = life = _lives.get(key) or _Life(file)
    return life


def _remove(file: Path, names: list[str]) -> None:
    fs, key = storage.fs_and_key(_folder(file))
    with storage.translate_errors("remove", file), contextlib.suppress(FileNotFoundError):
        if names:
            fs.rm([f"{key}/{name}" for name in names])


def _folder(file: Path) -> Path:
    return file.with_name(file.name + PARTS)


def part_names(file: Path) -> list[str]:
    """Names of the additions, in order."""
    fs, key = storage.fs_and_key(_folder(file))
    with storage.translate_errors("read", file):
        # A folder whose first part appears between two requests of `find` is listed itself.
        return sorted(name.removeprefix(f"{key}/") for name in fs.find(key) if name.startswith(f"{key}/"))
