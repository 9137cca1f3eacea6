"""Stores datasets and runs in a folder of this machine, or at a URI that every machine of a cluster can reach.

    to_path("runs/x")  to_path("file:///mnt/runs/x")   a pathlib.Path
    to_path("s3://bucket/runs/x")                      a UPath (fsspec); also gs://, az:// with their package

A UPath is used like a Path (`/`, exists, glob, open, read_text, pickle), and typed as one. Operations that an object
store lacks have a function here that works for both: replace a whole file, remove a folder, write or read with a
library that knows local files only; files that grow are in `tap_ray.logs`. An object appears when its upload is
complete, so objects are never renamed.

Endpoint and credentials come from each machine's environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE ...;
fsspec's own configuration files); no path, pickle or manifest contains them.
"""

import contextlib
import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Mapping, Sequence, cast

from tap_ray.errors import ConfigError, StorageError

LOCAL = ("file", "local")
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "hdfs", "sftp", "memory", *LOCAL)
"""Protocols of URIs that are recognized in text fields; a path field accepts any that fsspec knows."""
CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")
"""Packages whose exceptions mean that the storage refused or cannot be reached."""
UPLOADS = 16
"""Number of simultaneous uploads."""
SLASH_LOST = re.compile(r"^(s3a?|gc?s|az|abfs|file):/(?!/)")


def to_path(path: Path | str) -> Path:
    """Convert a path or URI to a path object; a Path is unchanged except for a leading "~" (the home folder).

    Raises:
        ConfigError: this kind of URI is unknown, its package is missing, or it names no folder in a bucket.
    """
    text = str(path)
    if SLASH_LOST.match(text):
        raise ConfigError(
            f"{text} is not a URI: it needs two slashes (file: three) after the colon, as in s3://bucket/x."
        )
    if text.startswith("~"):
        return _expanded(text)
    if not isinstance(path, str):
        return path
    protocol, found, rest = path.partition("://")
    if not found:
        return Path(path)
    if protocol in LOCAL:
        if not rest.startswith("/"):
            raise ConfigError(f"{path} contains a host name, but a file URI needs three slashes: file:///folder.")
        return Path(urllib.request.url2pathname(rest))
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise ConfigError(
            "A URI must not contain credentials, because URIs are stored in manifests. Set the credentials in the "
            "environment."
        )
    if not bucket or not key.strip("/"):
        raise ConfigError(f"{path} does not name a folder. Give {protocol}://{bucket or 'BUCKET'}/FOLDER.")
    from upath import UPath  # takes half a second, which local paths do not need

    try:
        remote = UPath(path.rstrip("/"), use_listings_cache=False)  # what other machines write must be seen
        _ = remote.fs
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path} cannot be used: {error}. S3 (s3://) and file:/// are always supported.") from None
    return cast(Path, remote)


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: {error} Give the whole path.") from None


def is_remote(path: Any) -> bool:
    """Whether a path is that of a URI (a UPath), which is not in this machine's file system."""
    return hasattr(path, "storage_options")


def is_same(one: Path | str, other: Path | str) -> bool:
    """Whether two paths or URIs lie in the same storage: both on this machine's file system, or in one bucket."""
    return _bucket(one) == _bucket(other)


def _bucket(path: Path | str) -> str:
    """For example "s3://bucket"; empty for a local path."""
    protocol, found, rest = str(path).partition("://")
    return f"{protocol}://{rest.partition('/')[0]}" if found and protocol not in LOCAL else ""


def require_reachable(path: Path) -> None:
    """Check that a URI's storage answers. Local paths pass.

    Raises:
        StorageError: the bucket does not exist, the credentials are refused, or there is no answer; the message says
            what to do.
    """
    if not is_remote(path):
        return
    fs, key = fs_and_key(path)
    with translate_errors("read", path):
        try:
            fs.ls(key)
        except (FileNotFoundError, NotADirectoryError):
            bucket = key.partition("/")[0]
            if not fs.exists(bucket):
                raise StorageError(f"{path}: there is no bucket {bucket!r}. Create it, or fix the URI.") from None


@contextlib.contextmanager
def translate_errors(verb: str, path: Path) -> Generator[None]:
    """Turn errors of the storage into a StorageError: any OSError when writing, and when reading from a URI any except
    a missing file."""
    try:
        yield
    except Exception as error:
        if not _refused(error, writing=verb != "read", remote=is_remote(path)):
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        hint = _hint(error) if is_remote(path) else "Free some space, or name another folder with --out."
        raise StorageError(f"Cannot {verb} {path}: {reason.rstrip('.')}. {hint}") from None


def _refused(error: Exception, *, writing: bool, remote: bool) -> bool:
    if isinstance(error, OSError) and writing:
        return True
    if isinstance(error, FileNotFoundError) or not remote:
        return False
    if isinstance(error, OSError):  # Arrow's errors about damaged files have no number
        return error.errno is not None or isinstance(error, (PermissionError, ConnectionError, TimeoutError))
    return type(error).__module__.partition(".")[0] in CLIENTS


def _hint(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "bucket" in text and ("exist" in text or "not found" in text):
        return "Create the bucket, or fix the URI."
    if isinstance(error, PermissionError) or any(word in text for word in ("credential", "access key", "denied")):
        return (
            "Check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role) "
            "and their permissions."
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "not set: the provider's own")
    return f"Check AWS_ENDPOINT_URL (now {endpoint}) and the network; the same command resumes from here."


def fs_and_key(path: Path) -> tuple[Any, str]:
    """fsspec's file system of a path, and the key in it."""
    return cast(Any, path).fs, cast(Any, path).path


def make_folder(path: Path) -> None:
    """Make a folder and its parents; object stores have no folders."""
    if not is_remote(path):
        with translate_errors("create", path):
            path.mkdir(parents=True, exist_ok=True)


def write(path: Path, data: bytes) -> None:
    """Replace a file atomically: a reader sees the old one or the complete new one, even after a power failure.

    Raises:
        StorageError: the storage refused; the old file is untouched.
    """
    with translate_errors("write", path):
        if is_remote(path):
            fs, key = fs_and_key(path)
            fs.pipe_file(key, data)
            return
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_bytes(data)
            _sync(temporary)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_all(contents: Mapping[Path, bytes]) -> None:
    """`write` several files at the same time, in no order.

    Raises:
        StorageError: the storage refused one of them; others may have been written.
    """
    with ThreadPoolExecutor(min(UPLOADS, max(1, len(contents)))) as pool:
        for _ in pool.map(write, contents.keys(), contents.values()):
            pass


def remove(path: Path, *, first: str | None = None) -> None:
    """Remove a folder and its contents if it exists; the file `first` is removed before the others.

    Raises:
        StorageError: the storage refused.
    """
    with translate_errors("remove", path):
        if first is not None:
            (path / first).unlink(missing_ok=True)
        if not is_remote(path):
            shutil.rmtree(path, ignore_errors=not path.exists())
        elif path.exists():
            fs, key = fs_and_key(path)
            fs.rm(key, recursive=True)


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove what killed processes left in a local folder while they were writing: temporary files, and folders of
    `atomic_write`; with `deep` in all its folders as well.

    Raises:
        StorageError: the disk refused.
    """
    for leftover in list((folder.rglob if deep else folder.glob)(".*.tmp")):
        with translate_errors("remove", leftover):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path, *, folder: bool = False) -> Generator[Path]:
    """Yield a local file (or folder) to write in the body; it appears at `path`, complete, when the body has succeeded.

    A local folder is `path` itself: its files appear one by one. What a killed process left there is removed before.

    Raises:
        StorageError: the storage refused.
    """
    with translate_errors("write", path):
        if folder and not is_remote(path):
            path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            yield path
            return
        beside = None if is_remote(path) else path.parent
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=beside) as room:
            here = Path(room) / path.name
            if folder:
                here.mkdir()
            yield here
            if beside is not None:
                _sync(here)
                os.replace(here, path)
            else:
                fs, key = fs_and_key(path)
                files = [str(each) for each in ([here] if not folder else here.rglob("*")) if each.is_file()]
                with ThreadPoolExecutor(min(UPLOADS, max(1, len(files)))) as pool:
                    for _ in pool.map(fs.put_file, files, [f"{key}{file.removeprefix(str(here))}" for file in files]):
                        pass


@contextlib.contextmanager
def local_copy(path: Path) -> Generator[Path]:
    """Yield a local path for libraries that can only read those: the path itself, or a local copy for the duration of
    the body.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tap_ray-") as room:
        here = Path(room) / path.name
        with translate_errors("read", path):
            fs, key = fs_and_key(path)
            fs.get(key, str(here), recursive=fs.isdir(key))
        yield here


def versions(folder: Path) -> dict[str, str]:
    """Path below a remote folder -> version of its content; {} for a local folder."""
    if not is_remote(folder):
        return {}
    fs, key = fs_and_key(folder)
    with translate_errors("read", folder):
        return {name.removeprefix(f"{key}/"): version_of(info) for name, info in fs.find(key, detail=True).items()}


def version(path: Path) -> str:
    """The version of a remote file's current content.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused.
    """
    fs, key = fs_and_key(path)
    with translate_errors("read", path):
        return version_of(fs.info(key))


def version_of(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or (info.get("size"), info.get("LastModified"), info.get("mtime")))


def read(path: Path) -> bytes:
    """Read a whole file in one consistent version, even if it is being replaced.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage refused.
    """
    if not is_remote(path):
        return path.read_bytes()
    fs, key = fs_and_key(path)
    with translate_errors("read", path):
        return fs.cat_file(key)


def read_all(paths: Sequence[Path]) -> list[bytes]:
    """Read many small files of one dataset; from an object store all at once.

    Raises:
        FileNotFoundError: one is missing.
        StorageError: the storage refused.
    """
    if not paths or not is_remote(paths[0]):
        return [read(path) for path in paths]
    fs, _ = fs_and_key(paths[0])
    with translate_errors("read", paths[0].parent):
        keys = [fs_and_key(path)[1] for path in paths]
        contents = fs.cat_ranges(keys, [0] * len(keys), [None] * len(keys), on_error="return")  # saves asking the sizes
    return [read(path) if isinstance(c, Exception) else c for path, c in zip(paths, contents, strict=True)]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
