"""A run folder: config.json (what was asked), manifest.json (how it came about), then whatever the stage writes.

The default folder is named by the hash of what makes it, `runs/<job>-<hash>`: the same command finds its own folder
again, goes on where it was cut off, and does nothing when it had finished.
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from tap_ray import storage
from tap_ray.config import differences, digest
from tap_ray.errors import CheckpointError, ConfigError

STORE = Path("runs")
"""Where runs lie that nobody named a folder for."""
PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "gymnasium",
    "pybullet",
    "mani-skill",
    "mlflow",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder."""

    path: Path
    config: Mapping[str, Any]
    hash: str
    """Names what makes this run: its job, its config and the hashes of its parents."""
    resumed: bool
    """The folder was there already, begun by the same command."""
    done: bool
    """... and finished."""


def open_run(
    out: Path | str | None,
    *,
    job: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Path | str] | None = None,
) -> Run:
    """Create a run folder, or enter the one that the same command began.

    Args:
        out: the folder; None names it `runs/<job>-<hash>`.
        job: verb, e.g. "align".
        config: the resolved config as plain values. The key "out" and those that start with "_" do not enter the
            hash (they say where and how, not what).
        parents: role -> run folder or data set it is made from, e.g. {"init": "runs/pretrain-..."}.

    Raises:
        ConfigError: `out` holds something else (each differing key is named).
        CheckpointError: a parent is missing.
    """
    what, name = _what(config), _name(job, config, parents or {})
    ancestry = {role: {"path": str(path), "hash": hash_of(path)} for role, path in (parents or {}).items()}
    path = storage.at(out) if out else STORE / f"{job}-{name[:10]}"
    if (path / "manifest.json").exists():
        return _reopen(path, job=job, name=name, config=config, what=what)
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - set(_BEGUN)):
        raise ConfigError(f"{path} exists and is not a run folder. Name another folder with --out, or remove it.")
    manifest = {
        "job": job,
        "hash": name,
        "status": "running",
        "parents": ancestry,
        **provenance(),
    }
    storage.make_folder(path)
    write_json(path / "config.json", config)
    write_json(path / "manifest.json", manifest)
    return Run(path=path, config=config, hash=name, resumed=False, done=False)


def folder_of(
    store: Path, *, job: str, config: Mapping[str, Any], parents: Mapping[str, Path | str] | None = None
) -> Path:
    """Where `open_run` puts the run of these arguments if `store` is where runs lie."""
    return store / f"{job}-{_name(job, config, parents or {})[:10]}"


def _name(job: str, config: Mapping[str, Any], parents: Mapping[str, Path | str]) -> str:
    return digest({"job": job, "config": _what(config), "parents": {r: hash_of(p) for r, p in parents.items()}})


def is_done(path: Path) -> bool:
    """Whether a run lies here that has finished."""
    return (path / "manifest.json").exists() and read_json(path / "manifest.json")["status"] == "done"


@contextlib.contextmanager
def alone(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that holds `file`: waits while another does, and takes over as soon as that one ends or dies.

    Args:
        file: made if it is not there; says who holds it.
        say: told once whom it waits for.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"waits for {lock.read().strip() or 'another process'}, which works on it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield


_BEGUN = ("config.json", ".config.json.tmp", ".manifest.json.tmp")
"""What a run leaves that was killed before its manifest was written."""


def _what(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that enters the hash."""
    return {key: value for key, value in config.items() if key != "out" and not key.startswith("_")}


def _reopen(path: Path, *, job: str, name: str, config: Mapping[str, Any], what: Mapping[str, Any]) -> Run:
    manifest = _manifest(path)
    if manifest["hash"] != name:
        old = read_json(path / "config.json")
        old_what = _what(old)
        lines = differences(old_what, what) or ["its parents have changed since"]
        raise ConfigError(
            f"{path} holds another run ({manifest['job']}):\n  "
            + "\n  ".join(lines)
            + "\nName another folder with --out, or remove this one."
        )
    return Run(path=path, config=config, hash=name, resumed=True, done=manifest["status"] == "done")


def provenance() -> dict[str, Any]:
    """When, from which commit, on what and with which versions something is made."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {package: _version(package) for package in PACKAGES},
    }


def finish(run: Run, **facts: Any) -> None:
    """Mark the run as done; `facts` (plain JSON) join its manifest."""
    manifest = read_json(run.path / "manifest.json")
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(run.path / "manifest.json", {**manifest, **facts, "status": "done", "ended": ended})


def annotate(run: Run, **facts: Any) -> None:
    """Add plain JSON facts to the manifest of a run in progress (e.g. its MLflow run id)."""
    write_json(run.path / "manifest.json", {**read_json(run.path / "manifest.json"), **facts})


def hash_of(path: Path | str) -> str:
    """The hash in the manifest of a run folder or data set.

    Raises:
        CheckpointError: there is no such folder, or it is neither.
    """
    path = storage.at(path)
    if (path / "meta" / "tap_ray.json").exists():
        # A data set keeps its plan when it grows, so its length belongs to what it is.
        plan, info = read_json(path / "meta" / "tap_ray.json"), read_json(path / "meta" / "info.json")
        return digest({"plan": plan["hash"], "episodes": info["total_episodes"]})
    if (path / "manifest.json").exists():
        return str(_manifest(path)["hash"])
    state = "is neither a run folder nor a data set of this project" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {state}. Give a folder that a job printed as its last line.")


def require_done(path: Path | str, *, job: str) -> dict[str, Any]:
    """The manifest of a finished run of `job`.

    Raises:
        CheckpointError: missing, of another job, or not finished.
    """
    hash_of(path)
    manifest = _manifest(storage.at(path))
    if manifest["job"] != job:
        raise CheckpointError(f"{path} is a run of {manifest['job']!r}; a run of {job!r} is needed here.")
    if manifest["status"] != "done":
        raise CheckpointError(f"{path} has not finished. Run its command again: it goes on where it was cut off.")
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """A run folder's manifest.

    Raises:
        CheckpointError: missing, cut off, or something else.
    """
    manifest = read_json(path / "manifest.json")
    lacking = [key for key in ("job", "hash", "status") if not isinstance(manifest, dict) or key not in manifest]
    if lacking:
        raise CheckpointError(
            f"{path / 'manifest.json'} lacks {', '.join(lacking)}: it is none that a job wrote. Give a folder that a "
            "job printed as its last line."
        )
    return manifest


def write_json(path: Path, values: Any) -> None:
    """Write plain JSON so that a reader sees the old file or the whole new one, whenever the power goes.

    Raises:
        StorageError: the disk refused.
    """
    storage.write(path, (json.dumps(values, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read plain JSON.

    Raises:
        CheckpointError: missing or cut off.
    """
    try:
        return json.loads(storage.read(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON (cut off?): {error}.") from None


def _git() -> str:
    """Commit of the source tree, "+dirty" with local changes, "" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + ("+dirty" if status.stdout.strip() else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
