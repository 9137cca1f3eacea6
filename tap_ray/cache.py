"""Keeps copies of an object store's files on this machine's disk: whole files, or the byte ranges that are needed.

They are kept for later jobs and other processes of this machine and are readable by their owner alone (mode 0600). The
least recently used ones are deleted first (`cache_bytes`). A copy belongs to one version of its file; see
`storage.versions`.
"""

import contextlib
import hashlib
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Sequence

from tap_ray import storage
from tap_ray.errors import ConfigError, StorageError

COPY = re.compile(r"\.?[0-9a-f]{32}\b.*")
"""Names of the cache's files."""
IN_USE_S = 60.0
"""Copies that were requested less than this time ago, s, are not deleted: they may not have been opened yet."""
LOOKS = 64
"""A process deletes old copies whenever it has added this fraction of the cache's size limit."""
MAX_REQUESTS = 32
"""Largest number of simultaneous requests where fsspec does not limit them itself."""

_room: dict[Path, float] = {}
"""Bytes that this process may still add to a cache before it checks the cache's size again."""


class Range(NamedTuple):
    """A byte range of one version of a remote file."""

    path: Path
    version: str
    start: int
    """First byte; a negative number means that many bytes at the end of the file."""
    end: int | None
    """The byte after the last one; None reads to the end of the file."""


class ReplacedError(StorageError):
    """The file has been replaced since the requested version."""

    def __init__(self, path: Path, version: str) -> None:
        super().__init__(f"{path} was replaced while it was being read. Run the same command again.")
        self.path, self.version = path, version

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.version)


def cached(path: Path) -> Path:
    """A local copy of the current version of a whole file; a local file is returned as it is.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused, or the cache cannot be written.
        ConfigError: see `cache_bytes`.
    """
    if not storage.is_remote(path):
        return path
    fs, key = storage.fs_and_key(path)
    before = storage.version(path)
    while not _used(copy := _copy(f"{path} {before}", path.suffix)):
        with _new(copy) as temporary:
            with storage.translate_errors("read", path):
                fs.get_file(key, str(temporary))
            if before != (now := storage.version(path)):
                before = now
                continue
            with storage.translate_errors("write", copy):
                os.replace(temporary, copy)
        _make_room(copy)
    return copy


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Read byte ranges of remote files. Ranges that are not on this machine yet are fetched all at once and kept.

    Adjacent ranges that follow each other in `ranges` share a request.

    Raises:
        FileNotFoundError: a file is gone.
        OSError: a file ends before a range does.
        ReplacedError: a file has been replaced since this version.
        StorageError: the storage refused, or the cache cannot be written.
        ConfigError: see `cache_bytes`.
    """
    found = [_kept(_range_copy(each)) for each in ranges]
    missing = [i for i, content in enumerate(found) if content is None]
    for i, content in zip(missing, _fetched([ranges[i] for i in missing]), strict=True):
        copy = _range_copy(ranges[i])
        with _new(copy) as temporary, storage.translate_errors("write", copy):
            temporary.write_bytes(content)
            os.replace(temporary, copy)
        _make_room(copy)
        found[i] = content
    return [content for content in found if content is not None]


def _fetched(ranges: Sequence[Range]) -> list[bytes]:
    spans: list[list[Range]] = []
    for each in ranges:
        last = spans[-1][-1] if spans else None
        if last is not None and (last.path, last.version, last.end) == (each.path, each.version, each.start):
            spans[-1].append(each)
        else:
            spans.append([each])
    if not spans:
        return []
    fs, _ = storage.fs_and_key(ranges[0].path)
    keys = [storage.fs_and_key(span[0].path)[1] for span in spans]
    with storage.translate_errors("read", ranges[0].path):
        contents = fs.cat_ranges(keys, [s[0].start for s in spans], [s[-1].end for s in spans], on_error="return")
    _require_versions({(each.path, each.version) for each in ranges})
    result: list[bytes] = []
    for span, content in zip(spans, contents, strict=True):
        with storage.translate_errors("read", span[0].path):
            if isinstance(content, BaseException):
                raise content
        if span[-1].end is not None and len(content) != span[-1].end - span[0].start:
            raise OSError(f"it ends before byte {span[-1].end}")
        first = span[0].start
        result += [content[r.start - first : r.end - first if r.end is not None else None] for r in span]
    return result


def _require_versions(files: set[tuple[Path, str]]) -> None:
    """Check versions after reading: a file that still has this version had it during the whole read."""
    with ThreadPoolExecutor(min(MAX_REQUESTS, len(files))) as pool:
        for (path, want), have in zip(files, pool.map(storage.version, [path for path, _ in files]), strict=True):
            if have != want:
                raise ReplacedError(path, want)


def cache_folder() -> Path:
    """The folder of the copies, which may be deleted at any time between jobs. TAP_RAY_CACHE sets another folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tap_ray"
    return Path(os.environ.get("TAP_RAY_CACHE") or default)


def cache_bytes(free: int, used: int) -> float:
    """Size limit of the cache, bytes: TAP_RAY_CACHE_GB, or if that is not set half of the disk space available to it.

    Args:
        free: free space on the cache's disk, bytes.
        used: space that the cache occupies, bytes.

    Raises:
        ConfigError: TAP_RAY_CACHE_GB is not a positive number.
    """
    limit = os.environ.get("TAP_RAY_CACHE_GB")
    if not limit:
        return (free + used) / 2
    with contextlib.suppress(ValueError):
        if 0 < (size_gb := float(limit)) < math.inf:
            return size_gb * 1e9
    raise ConfigError(
        "TAP_RAY_CACHE_GB must be a positive number of GB, e.g. 50: the most space that copies of remote data may "
        f"take on this machine; got {limit!r}. If it is unset, they may take half of the free disk space."
    )


def _copy(named: str, suffix: str) -> Path:
    return cache_folder() / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}{suffix}"


def _range_copy(part: Range) -> Path:
    return _copy(f"{part.path} {part.version} {part.start} {part.end}", ".part")


@contextlib.contextmanager
def _new(copy: Path) -> Generator[Path]:
    """Open a temporary file beside the copy that is being made; only its owner can read it."""
    temporary = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}")
    try:
        with storage.translate_errors("write", copy):
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.touch(mode=0o600)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _kept(copy: Path) -> bytes | None:
    try:
        return copy.read_bytes() if _used(copy) else None
    except FileNotFoundError:  # it has just freed space
        return None


def _used(copy: Path) -> bool:
    """Whether there is a copy; also sets its access time. Its modification time identifies its content and is not
    changed."""
    try:
        os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    except OSError:  # another user's copy, which that user evicts
        pass
    return True


def _make_room(added: Path) -> None:
    """Remove the least recently used copies until the rest fits; copies in use are kept."""
    folder = added.parent
    with contextlib.suppress(FileNotFoundError):
        _room[folder] = _room.get(folder, 0) - added.stat().st_size
    if _room.get(folder, 0) > 0:
        return
    found: list[tuple[float, int, str]] = []
    for file in os.scandir(folder):
        if COPY.fullmatch(file.name):  # the folder may belong to another user
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                found.append((max(status.st_atime, status.st_mtime), status.st_size, file.path))
    used = sum(size for _, size, _ in found)
    limit = cache_bytes(shutil.disk_usage(folder).free, used)
    _room[folder], excess = limit / LOOKS, used - limit
    for last_s, size, file in sorted(found):
        if excess <= 0 or last_s > time.time() - IN_USE_S:
            return
        with contextlib.suppress(OSError):
            os.unlink(file)
        excess -= size
