"""Locks datasets and runs, so that only one process writes each, on a local disk and on an object store.

A local folder is locked by a file in it (flock by way of filelock; NFS does not lock folders): the kernel releases it
when the process ends, however it ends. A file system without locks is refused. An object store has no locks. There a
lock is a small object beside the folder, `<folder>.lock`, made by an upload that fails if it exists, and written again
every HEARTBEAT_S seconds by its holder. A process that finds one watches it: if it changes, the holder is alive; if it
stays the same for LEASE_S by the watcher's own clock (no two clocks are compared), or its process has died on this same
machine, the holder is dead. The watcher then takes the lock, by an upload that fails if it has changed since. A holder
that was disconnected for that long finds another process in its lock and stops at its next write.
"""

import contextlib
import json
import math
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable, Protocol

import filelock
import psutil

from tap_ray import storage
from tap_ray.errors import StorageError

HEARTBEAT_S = 5.0
"""How often a holder renews its lock on an object store, s."""
LEASE_S = 30.0
"""A lock that has not been renewed for this long, s, belongs to a dead process. Other processes always wait for the
full time."""
POLL_S = 0.2
"""Pause between two attempts to take a lock, s; of an object store that is five requests a second."""
LOCK_FILE = ".lock"
"""The file in a local folder that is locked; it stays when the lock is gone."""


class Lock(Protocol):
    """A lock that this process holds."""

    def require(self) -> None:
        """Raise a StorageError if the lock has been lost. Called before each write."""
        ...

    def close(self) -> None:
        """Release the lock."""
        ...


def acquire(folder: Path, *, timeout_s: float = 0.0, lock_file: str = LOCK_FILE, signed: bool = True) -> Lock | None:
    """Take a folder's lock.

    Args:
        folder: the folder to lock; made if it is missing.
        timeout_s: how long to wait for a live holder, s.
        lock_file: names the lock: file in a local folder; a remote folder has one lock, beside it, for each name.
        signed: whether the file names the holder.

    Returns:
        The lock; None if another process has it.

    Raises:
        StorageError: the storage refused.
    """
    if storage.is_remote(folder):
        return _lease(_lease_of(folder, lock_file), timeout_s)
    storage.make_folder(folder)
    return acquire_file(folder / lock_file, timeout_s, signed=signed)


def acquire_file(file: Path, timeout_s: float = 0.0, *, signed: bool = True) -> Lock | None:
    """Take a lock on a local file, which is made if it is missing; a `timeout_s` of -1 waits forever. See `acquire`."""
    lock = filelock.FileLock(file, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=POLL_S)
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            file.write_text(f"process {os.getpid()} on {platform.node()}\n" if signed else "")
    except filelock.Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        lock.release(force=True)
        raise StorageError(
            f"Cannot lock {file}: {getattr(error, 'strerror', None) or error}. Without a lock two jobs could "
            "overwrite each other's files. Mount this file system with locks (Lustre: -o flock), or choose another "
            "folder."
        ) from None
    return _FileLock(lock)


def holder(folder: Path, lock_file: str = LOCK_FILE) -> str:
    """The holder of a folder's lock, e.g. "process 12 on robot-3"; "another process" if that is unknown."""
    with contextlib.suppress(OSError, StorageError, UnicodeDecodeError):
        if not storage.is_remote(folder):
            return (folder / lock_file).read_text().strip() or "another process"
        _, found = _read_holder(_lease_of(folder, lock_file))
        if found:
            return f"process {found.get('pid')} on {found.get('host')}"
    return "another process"


@contextlib.contextmanager
def exclusive_lock(folder: Path, name: str, on_wait: Callable[[str], None]) -> Generator[None]:
    """Hold a named lock during the body; waits while another process holds it, and takes over when that ends or dies.

    Args:
        folder: folder of the lock; made if it is missing.
        name: name of the lock; its file names the holder.
        on_wait: called once with a message that names the holder, if it has to wait.
    """
    held = acquire(folder, lock_file=name)
    if held is None:
        on_wait(f"waiting for {holder(folder, name)}, which is working on it")
    while held is None:
        held = acquire(folder, lock_file=name, timeout_s=math.inf)
    try:
        yield
    finally:
        held.close()


class _FileLock:
    def __init__(self, lock: filelock.BaseFileLock) -> None:
        self._lock = lock  # is released when it is garbage-collected

    def require(self) -> None:
        pass

    def close(self) -> None:
        self._lock.release(force=True)


class _Lease:
    """A lock on an object store, which a thread renews."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._owner, self._heartbeats = path, owner, 0
        self._ended, self._renewed, self._lost = threading.Event(), time.monotonic(), False
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._heartbeat, name="tap_ray-lock", daemon=True)
        self._thread.start()

    def _heartbeat(self) -> None:
        while not self._lost and not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError):  # the storage is unreachable: try again
                self._renew()

    def _renew(self) -> None:
        with self._mutex:
            version, holder = _read_holder(self._path)
            self._heartbeats += 1
            mine = holder.get("owner") == self._owner
            if mine and not _swap(self._path, version, _text(self._owner, self._heartbeats)):
                # The answer was lost, and the request was sent twice.
                mine = _read_holder(self._path)[1].get("owner") == self._owner
            self._lost = not mine
            self._renewed = time.monotonic()

    def require(self) -> None:
        if not self._lost and time.monotonic() - self._renewed > LEASE_S:
            self._renew()  # the machine slept, or the storage was unreachable: check whether the lock is still ours
        if self._lost:
            raise StorageError(
                f"The lock {self._path} was lost: it could not be renewed for {LEASE_S:.0f} s, and another process "
                "has taken it. When that process has finished, run the same command again: it resumes from the stored "
                "state."
            )

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # then the lock expires
            if _read_holder(self._path)[1].get("owner") == self._owner:
                storage.remove(self._path)


def _lease_of(folder: Path, lock_file: str) -> Path:
    return folder.with_name(f"{folder.name}{lock_file}")


def _lease(path: Path, timeout_s: float) -> Lock | None:
    owner = uuid.uuid4().hex
    start = since = time.monotonic()
    last: dict[str, Any] = {}
    while not _create(path, _text(owner, 0)):
        version, holder = _read_holder(path)
        if holder.get("owner") == owner:  # the answer was lost, and the request was sent twice
            break
        renewed = bool(last) and holder != last and holder.get("owner") == last.get("owner")
        if holder != last:
            last, since = holder, time.monotonic()
        here = is_alive_here(holder)
        if here is False or time.monotonic() - since > LEASE_S:
            if version and _swap(path, version, _text(owner, 0)):
                break
        elif (here or renewed) and time.monotonic() - start >= timeout_s:
            return None
        else:
            time.sleep(POLL_S)
    return _Lease(path, owner)


def _text(owner: str, number: int) -> bytes:
    me = {"pid": os.getpid(), "born": psutil.Process().create_time(), "machine": machine_id()}
    return json.dumps({"owner": owner, "beat": number, "host": socket.gethostname(), **me}).encode()


def _read_holder(path: Path) -> tuple[str, dict[str, Any]]:
    """Version and holder of a lock; the holder is {} if there is no lock or it is not one of ours."""
    version, content = _peek(path)
    try:
        return version, json.loads(content)
    except json.JSONDecodeError:
        return version, {}


def _create(path: Path, data: bytes) -> bool:
    """Create a small object unless it exists; returns whether it was created. If many try at the same time, one
    succeeds."""
    fs, key = storage.fs_and_key(path)
    with storage.translate_errors("write", path):
        try:
            fs.pipe_file(key, data, mode="create")
        except FileExistsError:
            return False
    return True


def _swap(path: Path, version: str, data: bytes) -> bool:
    """Replace a small object unless it has changed since `version` (see `_peek`); returns whether it was replaced.

    Only S3 checks the version; on other stores a concurrent change is overwritten.
    """
    fs, key = storage.fs_and_key(path)
    with storage.translate_errors("write", path):
        try:
            fs.pipe_file(key, data, **({"IfMatch": version} if key and "s3" in fs.protocol else {}))
        except OSError as error:
            if isinstance(error, FileNotFoundError) or "pre-condition" in str(error).lower():
                return False
            raise
    return True


def _peek(path: Path) -> tuple[str, bytes]:
    """Version and content of a small object; "" and nothing if there is none."""
    fs, key = storage.fs_and_key(path)
    with storage.translate_errors("read", path):
        try:
            return storage.version_of(fs.info(key)), fs.cat_file(key)  # a change between the two makes `_swap` refuse
        except FileNotFoundError:
            return "", b""


def machine_id() -> str:
    """Identifies the set of processes that this one can see: a boot of the kernel, and a container's process
    namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_alive_here(holder: dict[str, Any]) -> bool | None:
    """Whether the holder, a process of this machine, is still alive; None if it runs on another machine."""
    if not holder.get("machine") or holder["machine"] != machine_id():
        return None
    try:
        process = psutil.Process(holder["pid"])
        return process.create_time() == holder["born"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
