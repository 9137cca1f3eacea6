"""Manages run folders: config.json (the job's settings), manifest.json (command, versions, parents), and the stage's
files.

config.json is the job's complete config, so `python -m jobs.<verb> --config RUN/config.json` gives the same run.

The default folder is named by the hash of what determines the run, `runs/<job>-<hash>`: the same command finds its
folder again, resumes where it was interrupted, and does nothing if it had finished.

The hash depends on content: inputs enter it by the hashes in their own manifests, not by their paths. While a job works
in a folder it holds the folder's lock (`entered`).
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence, cast

from tap_ray import locks, storage
from tap_ray.config import FORMER, RENAMED_ANYWHERE, differences, digest, keys_renamed, to_dict
from tap_ray.errors import CheckpointError, ConfigError, without_credentials

LOCK = ".job.lock"
"""Name of the lock that a job holds while it works in a run folder."""
LOCK_TIMEOUT_S = 2.0
"""How long to wait for the lock of a job that is ending, s."""
STORE = Path("runs")
"""Default parent folder of runs."""
FORMER_ROLES: Mapping[str, str] = {"evaluated_on": "judged_on"}
"""Roles of parents -> their former names, found in older manifests."""
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
class MadeBy:
    """Settings of a run, as plain values: those that determine its results, and those that do not."""

    identity: Mapping[str, Any]
    """Settings that enter the run's hash, except for the key "out" (at any depth) and keys that are roles of its
    parents, which enter by their own hashes."""
    runtime: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of where and how it runs; no result depends on them."""
    former: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of `identity` as they were when the hashes of runs contained paths."""
    episodes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Role of a dataset among the parents -> number of its first episodes that the run uses; 0 or absent: all. The run
    stays the same when the dataset grows."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder."""

    path: Path
    config: Mapping[str, Any]
    """Both parts of `MadeBy`."""
    hash: str
    """Identifies the run by its job, its config and the hashes of its parents."""
    done: bool
    """Whether an earlier call of the same command has finished it."""


@contextlib.contextmanager
def entered(
    out: Path | str | None,
    *,
    job: str,
    config: MadeBy | Mapping[str, Any],
    parents: Mapping[str, Path | str] | None = None,
    job_config: Any = None,
    rewrites: bool = False,
) -> Generator[Run]:
    """`open_run` for the duration of a job, with the folder locked.

    Args:
        out, job, config, parents, job_config: see `open_run`.
        rewrites: whether the job also writes into a finished run; if not, a finished run is not locked.

    Raises:
        CheckpointError: another job works in the folder; or see `open_run`. ConfigError, StorageError: see `open_run`.
    """
    names = _names(job, made_by := _made_by(config), parents or {})
    path = _place(out, STORE, job, names)
    _require_ours(path, job, names, made_by, parents or {})
    held = None
    if rewrites or not is_done(path):
        held = locks.acquire(path, timeout_s=LOCK_TIMEOUT_S, lock_file=LOCK)
        if held is None:
            raise CheckpointError(
                f"Another job works in {path}: {locks.holder(path, LOCK)}. Wait for it, or stop it and run again, or "
                "name another folder with --out."
            )
    try:
        yield open_run(out, job=job, config=made_by, parents=parents, job_config=job_config)
    finally:
        if held is not None:
            held.close()


def open_run(
    out: Path | str | None,
    *,
    job: str,
    config: MadeBy | Mapping[str, Any],
    parents: Mapping[str, Path | str] | None = None,
    job_config: Any = None,
) -> Run:
    """Create a run folder, or open the one that the same command has begun.

    Args:
        out: the folder; None names it `runs/<job>-<hash>`.
        job: name of the job, e.g. "align".
        config: its settings; plain values are all part of its identity.
        parents: role -> run folder or dataset it is made from, e.g. {"init": "runs/pretrain-..."}.
        job_config: the job's config, for config.json; None: `config`.

    Raises:
        ConfigError: `out` holds something else (each differing key is named).
        CheckpointError: a parent is missing.
    """
    parents, made_by = parents or {}, _made_by(config)
    names = _names(job, made_by, parents)
    config = {**made_by.identity, **made_by.runtime}
    ancestry: dict[str, dict[str, Any]] = {}
    for role, path in parents.items():
        used = made_by.episodes.get(role, 0)
        ancestry[role] = {"path": str(path), "hash": hash_of(path, used), **({"episodes": used} if used else {})}
    path = _place(out, STORE, job, names)
    manifest = _require_ours(path, job, names, made_by, parents)
    if manifest is not None:
        done = manifest["status"] == "done"
        return Run(path=path, config=config, hash=str(manifest["hash"]), done=done)
    manifest = {
        "job": job,
        "hash": names[0],
        "status": "running",
        "parents": ancestry,
        "made_by": made_by.identity,
        "runtime": made_by.runtime,
        **provenance(),
    }
    storage.make_folder(path)
    write_json(path / "config.json", config if job_config is None else to_dict(job_config))
    write_json(path / "manifest.json", manifest)
    return Run(path=path, config=config, hash=names[0], done=False)


def folder_of(
    store: Path,
    *,
    job: str,
    config: MadeBy | Mapping[str, Any],
    parents: Mapping[str, Path | str] | None = None,
) -> Path:
    """The folder that `open_run` uses for these arguments if `store` is the parent folder of runs."""
    return _place(None, store, job, _names(job, _made_by(config), parents or {}))


def _made_by(config: MadeBy | Mapping[str, Any]) -> MadeBy:
    return config if isinstance(config, MadeBy) else MadeBy(identity=config)


def _names(job: str, made_by: MadeBy, parents: Mapping[str, Path | str]) -> tuple[str, ...]:
    """The hash of a run, and its hashes in earlier versions, when names differed, when all episodes of a dataset
    counted, or when the paths of its parents were included."""
    hashes = {role: hash_of(path, made_by.episodes.get(role, 0)) for role, path in parents.items()}
    whole = {role: hash_of(path) for role, path in parents.items() if made_by.episodes.get(role)}
    known = (hashes, hashes | whole)
    roles = [each for one in known for each in (one, keys_renamed(one, FORMER_ROLES))]
    paths = {key: value for key, value in {**made_by.identity, **made_by.former}.items() if key != "out"}
    now = _what(made_by.identity, parents)
    ways = (now, keys_renamed(now, FORMER), keys_renamed(paths, FORMER))
    return tuple(digest({"job": job, "config": values, "parents": each}) for values in ways for each in roles)


def _place(out: Path | str | None, store: Path, job: str, names: tuple[str, ...]) -> Path:
    if out:
        return storage.to_path(out)
    folders = [store / f"{job}-{name[:10]}" for name in names]
    return next((folder for folder in folders if folder.exists()), folders[0])


def is_done(path: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (path / "manifest.json").exists() and _manifest(path)["status"] == "done"


_BEGUN = ("config.json", ".config.json.tmp", ".manifest.json.tmp", LOCK, locks.LOCK_FILE)
"""Files that may be left by a run that was killed before its manifest was written."""


def _what(config: Mapping[str, Any], parents: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that enters the hash."""
    return {
        key: _what(cast(Mapping[str, Any], value), {}) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key != "out" and key not in parents
    }


def _require_ours(
    path: Path,
    job: str,
    names: tuple[str, ...],
    made_by: MadeBy,
    parents: Mapping[str, Path | str],
) -> dict[str, Any] | None:
    """The manifest of this run; None if the folder is empty.

    Raises:
        ConfigError: the folder holds something else.
    """
    if (path / "manifest.json").exists():
        manifest = _manifest(path)
        if manifest["hash"] in names:
            return manifest
        known = manifest.get("parents", {})
        for now, before in FORMER_ROLES.items():
            known = {now if role == before else role: parent for role, parent in known.items()}
        # Older manifests do not have it.
        before = manifest["made_by"] if "made_by" in manifest else read_json(path / "config.json")
        before = {key: value for key, value in before.items() if not key.startswith("_")}  # once: where and how
        old = _what(keys_renamed(before, RENAMED_ANYWHERE), known)
        lines = differences(old, _what(made_by.identity, parents))
        for role in sorted({*known, *parents}):
            before, now = known.get(role, {}).get("hash"), None
            if role in parents:
                now = hash_of(parents[role], made_by.episodes.get(role, 0))
            if before != now:
                was = f"{known[role]['path']} as it was ({before})" if before else "none"
                lines.append(f"{role}: {was} before, {f'{parents[role]} ({now})' if now else 'none'} now")
        raise ConfigError(
            f"{path} holds another run ({manifest['job']}{'' if manifest['job'] == job else f', not {job}'}):\n  "
            + "\n  ".join(lines or ["its job or its settings have changed"])
            + "\nName another folder with --out, or remove this one."
        )
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - set(_BEGUN)):
        raise ConfigError(f"{path} exists and is not a run folder. Name another folder with --out, or remove it.")
    return None


def provenance() -> dict[str, Any]:
    """Provenance: time, commit, command, machine and versions."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "command": without_credentials(shlex.join(["python", *sys.orig_argv[1:]])),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {package: _version(package) for package in PACKAGES},
    }


def finish(run: Run, **metadata: Any) -> None:
    """Mark the run as done, and add `metadata` (plain JSON) to its manifest."""
    manifest = read_json(run.path / "manifest.json")
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(run.path / "manifest.json", {**manifest, **metadata, "status": "done", "ended": ended})


def annotate(run: Run, **metadata: Any) -> None:
    """Add plain JSON metadata to the manifest of a run in progress (e.g. its MLflow run id)."""
    write_json(run.path / "manifest.json", {**read_json(run.path / "manifest.json"), **metadata})


def hash_of(path: Path | str, episodes: int = 0) -> str:
    """The hash in the manifest of a run folder or dataset; of a dataset's first `episodes` alone unless that is 0.

    Raises:
        CheckpointError: there is no such folder, or it is neither a run nor a dataset.
    """
    path = storage.to_path(path)
    if (path / "meta" / "tap_ray.json").exists():
        # A dataset keeps its plan when it grows, so its length is part of its identity.
        plan = read_json(path / "meta" / "tap_ray.json", needs=("hash",))
        info = read_json(path / "meta" / "info.json", needs=("total_episodes",))
        total = int(info["total_episodes"])
        return digest({"plan": plan["hash"], "episodes": min(episodes, total) if episodes else total})
    if (path / "manifest.json").exists():
        return str(_manifest(path)["hash"])
    state = "is neither a run folder nor a dataset of this project" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {state}. Give a run folder or a dataset (the last line that a job prints).")


def require_done(path: Path | str, *, job: str) -> dict[str, Any]:
    """The manifest of a finished run of `job`.

    Raises:
        CheckpointError: the run is missing, of another job, or not finished.
    """
    hash_of(path)
    manifest = _manifest(storage.to_path(path))
    if manifest["job"] != job:
        raise CheckpointError(f"{path} is a run of {manifest['job']!r}; a run of {job!r} is needed here.")
    if manifest["status"] != "done":
        raise CheckpointError(f"{path} has not finished. Run its command again: it resumes where it was interrupted.")
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """A run folder's manifest.

    Raises:
        CheckpointError: the manifest is missing, truncated, or not a manifest.
    """
    return read_json(path / "manifest.json", needs=("job", "hash", "status"))


def write_json(path: Path, values: Any) -> None:
    """Write plain JSON atomically: a reader sees the old file or the complete new one, even after a power failure.

    Raises:
        StorageError: the disk refused.
    """
    storage.write(path, (json.dumps(values, indent=2, default=str) + "\n").encode())


def read_json(path: Path, needs: Sequence[str] = ()) -> Any:
    """Read plain JSON.

    Args:
        path: the file.
        needs: keys that it must have.

    Raises:
        CheckpointError: the file is missing, truncated, or lacks one of these keys.
    """
    try:
        values = json.loads(storage.read(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON (truncated?): {error}.") from None
    require_keys(values, needs, path)
    return values


def require_keys(values: Any, needs: Sequence[str], where: Path | str) -> None:
    """Raise a CheckpointError that names the file and each missing key."""
    lacking = [key for key in needs if not isinstance(values, Mapping) or key not in values]
    if lacking:
        raise CheckpointError(
            f"{where} lacks {', '.join(lacking)}: it was not written by a job of tap_ray. Give a run folder or a "
            "dataset (the last line that a job prints)."
        )


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
