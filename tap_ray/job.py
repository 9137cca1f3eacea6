"""Starts and ends every job: flags -> config -> checks -> main -> the result's path as the last line.

    exit status   0    success: the last line of stdout is the path of the result
                  2    an error that the user can fix: one message on stderr, no traceback
                  130  Ctrl-C (SIGINT), 143 SIGTERM: the same command resumes from there
                  1    an error in tap_ray itself, with its traceback

However it ends, its run folder is unlocked and its MLflow run has ended (`job_run`):

    with job_run("probe", config, parents={"policy": config.policy}) as run:
        run.log({"probe/gripper_r2": 0.9})
        run.artifact("probe.json")
"""

import atexit
import contextlib
import dataclasses
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar, cast

from tap_ray import bounds, command_line, runs, signals, storage, tracking
from tap_ray.command_line import Offers
from tap_ray.config import to_dict
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.runs import MadeBy

C = TypeVar("C")

SUBMITTED = "working_dir_files"
"""Folder in which Ray keeps the copies of submitted working directories."""
PLACES = ("out", "store", "results")
"""Config fields that say where results are written."""


def run_job(main: Callable[[C], Path], config_type: type[C], offers: Offers[C] | None = None) -> None:
    """Run `python -m jobs.<verb>`; see `command_line` for the options besides its flags."""
    with signals.handle_signals():
        try:
            config, text = command_line.parse(main, config_type, sys.argv[1:], offers or Offers[C]())
            bounds.check(config)
            if text is not None:
                print(text(), flush=True)
                return
            require_kept(config, Path.cwd())
            for path in _uris(config):
                storage.require_reachable(path)
            print(main(config), flush=True)
        except TapRayError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted: run the same command again to resume from here.", file=sys.stderr, flush=True)
            _leave(signals.status())


def _leave(status: int) -> None:
    """End the process like `sys.exit`, but without the interpreter's shutdown, in which Ray's threads may crash it."""
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    os._exit(status)


class JobRun:
    """A job's run folder, and its MLflow run while the job is running."""

    def __init__(self, run: runs.Run, tracked: tracking.Run | None) -> None:
        self.path, self.done = run.path, tracked is None
        """`done`: the same command has finished this run before, so there is nothing to do."""
        self.metadata: dict[str, Any] = {}
        """Plain JSON that is added to the manifest at the end."""
        self.complete = True
        """False leaves the run unfinished; the same command continues it."""
        self._run, self._tracked = run, tracked

    @property
    def tracked(self) -> tracking.Run:
        """The MLflow run; there is none if the run was finished before."""
        assert self._tracked is not None
        return self._tracked

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """See `tracking.Run.log`."""
        self.tracked.log(metrics, step)

    def artifact(self, *names: str) -> None:
        """Copy files or folders of the run folder into MLflow."""
        for name in names:
            self.tracked.artifact(self.path / name)

    def annotate(self, **metadata: Any) -> None:
        """Add plain JSON to the manifest now."""
        runs.annotate(self._run, **metadata)


@contextlib.contextmanager
def job_run(
    job: str,
    config: Any,
    *,
    made_by: MadeBy | Mapping[str, Any] | None = None,
    parents: Mapping[str, Path | str] | None = None,
    out: Path | str | None = None,
    rewrites: bool = False,
) -> Generator[JobRun]:
    """Lock the job's run folder and begin or continue its MLflow run; both are ended however the body ends.

    Args:
        job: name of the job, e.g. "align".
        config: the job's config, saved as config.json.
        made_by: the identity and runtime settings, see `runs.MadeBy`; None: the whole config is the identity.
        parents: role -> run folder or dataset that it is made from.
        out: the run folder; None: `config.out`.
        rewrites: whether the job also writes into a finished run.

    Raises:
        CheckpointError, ConfigError, StorageError: see `runs.entered` and `tracking.start`.
    """
    made_by = to_dict(config) if made_by is None else made_by
    with runs.entered(
        out or config.out, job=job, config=made_by, parents=parents, job_config=config, rewrites=rewrites
    ) as run:
        if run.done and not rewrites:
            yield JobRun(run, None)
            return
        ids = {role: tracking.run_id_of(path) for role, path in (parents or {}).items()}
        with tracking.start(job, run.path, run.config, ids, run_id=tracking.run_id_of(run.path)) as tracked:
            runs.annotate(run, mlflow_run_id=tracked.run_id)
            life = JobRun(run, tracked)
            yield life
        if life.complete:
            runs.finish(run, **life.metadata)


def require_kept(config: Any, here: Path) -> None:
    """Raise a ConfigError if a submitted job would write into the cluster's copy of its working directory.

    Args:
        config: the job's config.
        here: its working directory.
    """
    if SUBMITTED not in here.parts:
        return
    for name in PLACES:
        path = getattr(config, name, here)
        if path is None or not (storage.is_remote(path) or path.is_absolute()):
            flag = f"--{name}"
            raise ConfigError(
                f"{flag} {path or 'is not given'}: this job was submitted to a cluster, where relative paths are in "
                f"Ray's copy of your folder, which is deleted with the cluster. Give {flag} an absolute path on a "
                "disk that outlives the cluster, or a URI (s3://...)."
            )


def _uris(values: Any) -> Iterator[Path]:
    """Every URI among the paths of a config, including paths in text fields (`--init`, `--policy`)."""
    if dataclasses.is_dataclass(values):
        values = [getattr(values, field.name) for field in dataclasses.fields(values)]
    if isinstance(values, (list, tuple)):
        for value in cast(Sequence[Any], values):
            yield from _uris(value)
    elif isinstance(values, str):
        if values.partition("://")[0] in storage.PROTOCOLS:
            yield from _uris(storage.to_path(values))
    elif storage.is_remote(values):
        yield values
