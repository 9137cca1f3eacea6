"""Joins a Ray cluster, or starts one on this machine that stops with the job.

Ray's token authentication stays on: before the first local Ray starts, `~/.ray/auth_token` is made, readable by its
owner alone; a cluster's nodes and clients share that file (`ray get-auth-token --generate`, or RAY_AUTH_TOKEN). The
dashboard binds to loopback. The ports between Ray's own processes are always open on every interface, and the token
protects them. No usage statistics are sent, unless the user's environment enables them.
"""

import logging
import os
import platform
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

import psutil
import ray
from ray.exceptions import AuthenticationError

from tap_ray import signals
from tap_ray.distributed import placement
from tap_ray.distributed.ray_internals.core import get_dashboard_url
from tap_ray.errors import ConfigError

PROBE_S = 10.0
"""How long a cluster may take to answer, s."""
THREADS_S = 10.0
"""How long Ray Data's threads may take to end, s; they wait for at most one Ray call and 0.1 s."""
MAX_SOCKET_BYTES = 107
"""Longest path of a Unix socket, bytes."""
SOCKET_BYTES = len(f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store")
"""Bytes that Ray itself adds to the longest of its socket paths."""
KEPT_TASKS, MAX_KEPT_TASKS = "task_events_max_num_task_in_gcs", 10_000
"""Ray's setting for the number of finished tasks that its state API and dashboard can list, and the value that we give
it."""
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment of a local Ray's processes: their malloc asks Linux for pages of 2 MB. A training step on a CPU and a
rendered image allocate their memory anew each time, and in pages of 4 kB the page faults take up to half of their time
(docs/performance.md)."""
MAX_STORE_BYTES = 2 * 10**9
MIN_STORE_BYTES = 100 * 10**6


@contextmanager
def connect(ray_address: str | None = None, *, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray for a `with` block; disconnect, or stop the Ray that was started, however the block ends.

    Inside an outer `connect` (or where Ray is connected already) it changes nothing, so jobs can call each other.

    Args:
        ray_address: "host:6379" or "auto"; None: the cluster of RAY_ADDRESS (which `ray job submit` sets), else a new
            local Ray.
        num_cpus: cores of a local Ray; None: as many as Ray counts, which heeds the limit of a container.
        dashboard: whether a local Ray serves its dashboard, on loopback only. It costs a process and a second.

    Raises:
        ConfigError: no cluster answers at the address, it refuses the token or has other versions; or this machine
            cannot start a Ray. Each says what to set.
    """
    if ray.is_initialized():
        yield
        return
    address = ray_address or os.environ.get("RAY_ADDRESS")
    with signals.handle_signals():
        try:
            with signals.library_handlers():
                if address and address != "local":
                    _join(address)
                else:
                    start_local(num_cpus, dashboard)
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            before = placement.spilled_bytes()
            yield
            warn_if_spilled(since=before)
        finally:
            _end_iterators()
            ray.shutdown()


def dashboard_url() -> str:
    """Address of the connected Ray's dashboard; "" if there is none."""
    address = get_dashboard_url()
    return f"http://{address}" if address else ""


def warn_if_spilled(since: int) -> None:
    """Print a warning if the cluster has spilled more than `since` bytes to disk: that slows jobs down, and none of
    ours needs it."""
    spilled = placement.spilled_bytes() - since
    if spilled > 0:
        print(
            f"Ray's object stores were full and wrote {spilled / 1e6:.0f} MB to disk during this job. Give the object "
            "stores more memory (`ray start --object-store-memory`), or lower --stream-memory-mb."
        )


def _end_iterators() -> None:
    """Wait for Ray Data's threads of iterators that are already closed.

    A thread that calls Ray after its end would take the process with it: exit status 1, without a word.
    """
    end = time.monotonic() + THREADS_S
    for thread in threading.enumerate():
        if thread.name == "iter_threaded":
            thread.join(max(0.0, end - time.monotonic()))


def _join(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} is an address of Ray Client, which jobs cannot use. Give the address of the cluster itself, "
            '"HOST:6379", on a machine that can reach its nodes, or submit the job with `ray job submit`.'
        )
    try:
        _check_port(address)
        with silent_stderr():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except AuthenticationError as error:
        raise ConfigError(
            f"The Ray cluster at {address} refused the token: {str(error).splitlines()[0]} Copy "
            "~/.ray/auth_token from its head node to this machine, or set RAY_AUTH_TOKEN."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(join_error(address, error)) from None


def join_error(address: str, error: Exception) -> str:
    """The message for a cluster that cannot be joined."""
    if "ersion mismatch" in str(error):
        theirs = [" ".join(line.split()) for line in str(error).splitlines() if re.match(r"\s+(Ray|Python): ", line)]
        return (
            f"The Ray cluster at {address} has {', '.join(theirs[:2]) or 'another version'}; this process has Ray: "
            f"{ray.__version__}, Python: {platform.python_version()}. Use the same versions on both."
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"No Ray cluster responds at {address!r}: {reason.rstrip('.')}. Start one there (`ray start --head`), check "
        "--ray-address and RAY_ADDRESS, or omit both to use this machine alone."
    )


def _check_port(address: str) -> None:
    """Raise an OSError within seconds if no server listens; Ray itself would continue trying for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()


def start_local(num_cpus: int | None, dashboard: bool) -> None:
    """Start a local Ray that ends with the process."""
    require_short_sockets()
    make_token()
    for name, value in LARGE_PAGES.items():
        os.environ.setdefault(name, value)
    try:
        with silent_stderr():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=store_bytes(),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                logging_level=logging.ERROR,
                log_to_driver=False,
                _system_config=_gcs_limits(),
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"A local Ray did not start: {reason.rstrip('.')}. Its logs: {temp_folder()}/ray/session_latest/logs; "
            "`python -m tap_ray.doctor` reports what this machine lacks."
        ) from None


def _gcs_limits() -> dict[str, int]:
    """Settings that bound the memory of a local Ray's GCS, which keeps 4 kB per finished task, unless the environment
    sets them.

    With Ray's own limit of 100,000 tasks it grows to 400 MB within hours, because a decoding job has several tasks per
    second.
    """
    return {} if f"RAY_{KEPT_TASKS}" in os.environ else {KEPT_TASKS: MAX_KEPT_TASKS}


def temp_folder() -> str:
    """The folder below which Ray keeps its sockets and logs."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def require_short_sockets() -> None:
    """Raise a ConfigError if the paths of Ray's sockets would be too long for Unix, or cannot be created."""
    folder, variable = temp_folder(), "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    length = len(os.fsencode(os.path.abspath(folder))) + SOCKET_BYTES
    if length > MAX_SOCKET_BYTES:
        raise ConfigError(
            f"{variable}={folder} is too long for Ray's sockets: their paths have {length} bytes, and at most "
            f"{MAX_SOCKET_BYTES} are possible. Set a shorter one, e.g. RAY_TMPDIR=/tmp"
        )
    try:
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise ConfigError(
            f"{variable}={folder} cannot be written ({error.strerror}), but Ray needs it for its sockets. Set another "
            "one, e.g. RAY_TMPDIR=/tmp"
        ) from None


def make_token() -> None:
    """Make Ray's token file unless it exists or the environment gives a token, and make it readable by its owner alone.

    Ray 2.60 itself writes it with the umask's permissions, and whoever has the token can run code here.

    Raises:
        ConfigError: the home folder cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        if not token.exists():
            token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = token.with_name(f".{token.name}.{os.getpid()}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with suppress(FileExistsError):
                os.link(new, token)  # unlike os.replace, it keeps the token that another first job makes meanwhile
            new.unlink()
        restrict_token_permissions(token)
    except OSError as error:
        raise ConfigError(
            f"Ray cannot store its token in {token}: {error.strerror}. Set HOME to a writable folder, "
            "RAY_AUTH_TOKEN_PATH to a file, or RAY_AUTH_TOKEN to a token."
        ) from None


def restrict_token_permissions(token: Path) -> None:
    """Make the token file readable by its owner alone."""
    if token.is_file() and token.stat().st_uid == os.getuid() and token.stat().st_mode & 0o077:
        token.chmod(0o600)


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Hide stderr while Ray starts: its C++ part prints there that logging is off. Errors still come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def store_bytes() -> int:
    """Size of a local Ray's object store, bytes: a fifth of the memory, at most 2 GB, because only small objects pass
    through it.

    It lies in /dev/shm, which is often tiny in containers; it takes at most half of that.
    """
    fifth = psutil.virtual_memory().available // 5
    shared = shutil.disk_usage("/dev/shm").free // 2 if os.path.isdir("/dev/shm") else MAX_STORE_BYTES
    return max(MIN_STORE_BYTES, min(MAX_STORE_BYTES, fifth, shared))
