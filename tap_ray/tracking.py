"""Records every job as an MLflow run: parameters, metrics over time, artifacts, parents. The only file that imports
mlflow.

    with tracking.start("align", run.path, to_dict(config), {"init": parent_id}) as tracked:
        tracked.log({"align/loss": 0.3}, step=100)
        tracked.artifact(run.path / "learning_curve.png")

MLflow is imported when a run starts and not with this file, because it takes 100 MB and a second, which fleets do not
need. Run ids are explicit; there is no global active run, so one process can write several runs.

Runs go to `MLFLOW_TRACKING_URI`, or to `sqlite:///mlflow.db` in the working directory with artifacts in
`./mlartifacts`. If the server cannot be reached *before* a job, the job ends within seconds. If it fails *during* the
job, or does not store artifacts, the job only warns: points wait in memory and are sent when it is back, and the run
folder has all of them in any case. MLflow's own client connects to it, with its certificates, passwords and proxies.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
import time
import warnings
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

from tap_ray import locks, runs, storage
from tap_ray.errors import StorageError, without_credentials
from tap_ray.tracking_place import require_reachable, tracking_uri, translate_errors, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)

EXPERIMENT = "tap_ray"
"""Name of the experiment that all jobs share (so that any two can be compared and parents shown);
MLFLOW_EXPERIMENT_NAME replaces it."""
FLUSH_S = 5.0
"""Metrics are sent in batches, at most this long after they were logged, s."""
RETRY_S = 30.0
"""Pause after a server has not answered, s."""
MAX_METRICS, MAX_PARAMS, MAX_KEY, MAX_VALUE = 1000, 100, 250, 6000
"""MLflow's limits: metrics and parameters in a batch, characters of a key and of a parameter's value."""

ENVIRONMENT = {
    # By default MLflow repeats a failed request 7 times with growing pauses and 120 s each, which takes minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # No usage statistics are sent.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The last line of a job is the path of its result, and the ones before are its own.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What we set before MLflow is imported, unless the user has set it."""


class Run:
    """Handle of one MLflow run. Holds only the address and the id, so it pickles and may be used on another machine
    that reaches the same server. As a context manager it ends as FINISHED, FAILED (exception) or KILLED (a signal)."""

    def __init__(self, *, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self._pending: list[tuple[str, float, int, int]] = []
        self._due = 0.0
        self._refused: set[str] = set()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each metric; sent in batches, see `FLUSH_S`. Never raises because of the server."""
        now_ms = int(time.time() * 1000)
        self._pending += [(_key(name), float(value), now_ms, int(step)) for name, value in metrics.items()]
        if len(self._pending) >= MAX_METRICS or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Send the metrics that `log` has collected."""
        from mlflow.entities import Metric

        self._due = time.monotonic() + FLUSH_S
        while self._pending:
            batch = self._pending[:MAX_METRICS]
            metrics = [Metric(*point) for point in batch]
            if not self._try("metrics", lambda client, sent=metrics: client.log_batch(self.run_id, metrics=sent)):
                self._due = time.monotonic() + RETRY_S
                return
            del self._pending[: len(batch)]

    def artifact(self, path: Path | str) -> None:
        """Copy a file, or a folder under its own name, into the run's artifacts.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = storage.to_path(path)
        if not path.exists():
            raise FileNotFoundError(f"The artifact {path} does not exist.")
        with storage.local_copy(path) as here:
            self._try("artifacts", lambda client: client.log_artifact(self.run_id, str(here)))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for name, value in tags.items():
            text = value[:MAX_VALUE]
            self._try("tags", lambda client, name=name, text=text: client.set_tag(self.run_id, _key(name), text))

    def finish(self, status: str = "FINISHED") -> None:
        """Send the rest and end the run as "FINISHED", "FAILED" or "KILLED"."""
        self.flush()
        if self._pending:
            LOG.warning(
                "MLflow at %s is still unreachable: the last %d points are only in the run folder.",
                without_credentials(self.uri),
                len(self._pending),
            )
        self._try("end of a run", lambda client: client.set_terminated(self.run_id, status))

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED")

    def _try(self, what: str, action: "Callable[[MlflowClient], Any]") -> bool:
        """Call a function of MLflow; an error of MLflow or its artifact store is reported once and otherwise
        ignored."""
        try:
            action(mlflow_client(self.uri))
        except Exception as error:  # noqa: BLE001  stores of artifacts raise what their libraries do, e.g. botocore's
            if what not in self._refused:
                where, reason = without_credentials(self.uri), without_credentials(str(error) or repr(error))
                LOG.warning("MLflow at %s did not accept %s; the job continues without it: %s", where, what, reason)
            self._refused.add(what)
            return False
        self._refused.discard(what)
        return True


def start(
    job: str,
    run_dir: Path | str,
    params: Mapping[str, Any],
    parents: Mapping[str, str | None] | None = None,
    *,
    run_id: str | None = None,
) -> Run:
    """Begin an MLflow run, or continue one.

    Args:
        job: name of the job, e.g. "align".
        run_dir: the run folder; its name becomes the run's name, its path a tag.
        params: the resolved config; nested keys are joined by ".".
        parents: role -> MLflow run id of what this run is made from (None: not tracked). Each becomes a tag
            `tap_ray.parent.<role>`; a single one that lives on this server also nests the run in MLflow's list.
        run_id: an earlier run of the same folder to continue with (`run_id_of(run_dir)`); ignored if the server
            does not know it.

    Raises:
        StorageError: the server does not answer, or the database cannot be opened.
    """
    uri = tracking_uri()
    require_reachable(uri)
    client = _open(uri)
    with translate_errors(uri):
        if run_id and _exists(client, run_id):
            client.update_run(run_id, status="RUNNING")
            return Run(uri=uri, run_id=run_id)
        run_dir = storage.to_path(run_dir).resolve()
        tags = {"mlflow.source.name": f"jobs.{job}", "tap_ray.job": job, "tap_ray.run_dir": str(run_dir)}
        known = {role: parent for role, parent in (parents or {}).items() if parent}
        tags |= {f"tap_ray.parent.{role}": parent for role, parent in known.items()}
        natural = next(iter(known.values())) if len(known) == 1 else None
        if natural and _exists(client, natural):
            tags["mlflow.parentRunId"] = natural
        name = run_dir.name if run_dir.name.startswith(job) else f"{job} {run_dir.name}"
        begun = Run(uri=uri, run_id=client.create_run(_experiment(client), tags=tags, run_name=name).info.run_id)
        try:
            _log_params(client, begun.run_id, params)
        except BaseException as error:
            begun.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    return begun


def client_of(uri: str | None = None) -> "MlflowClient":
    """A client of a tracking server that answers; None: the one of `tracking_uri`.

    Raises:
        StorageError: the server does not answer, or the database cannot be opened.
    """
    uri = uri or tracking_uri()
    require_reachable(uri)
    return _open(uri)


def error_type() -> type[Exception]:
    """MLflow's exception class."""
    from mlflow.exceptions import MlflowException

    return MlflowException


def run_id_of(folder: Path | str) -> str | None:
    """The MLflow run id that a run folder or dataset carries ("mlflow_run_id" in its manifest), or None."""
    folder = storage.to_path(folder)
    for manifest in (folder / "manifest.json", folder / "meta" / "tap_ray.json"):
        if manifest.exists():
            return runs.read_json(manifest).get("mlflow_run_id")
    return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested parameters for MLflow: {"model": {"width": 64}} -> {"model.width": "64"}, lists as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        else:
            text = json.dumps(value, default=str) if isinstance(value, (list, tuple)) else str(value)
            flat[_key(key)] = text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
    return flat


@lru_cache
def mlflow_client(uri: str) -> "MlflowClient":
    """MLflow's client of a tracking store, one per process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Its messages about created tables are not for users.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # MLflow 3.17 itself uses a loader that SQLAlchemy 2.1 is about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient

        return MlflowClient(uri)


def _open(uri: str) -> "MlflowClient":
    """The client, after a first real call has shown that MLflow answers and understands us."""
    try:
        with _exclusive_database(uri):
            client = mlflow_client(uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy, requests and MLflow each raise their own exceptions
        raise StorageError(unreachable(uri, error)) from error
    return client


@contextlib.contextmanager
def _exclusive_database(uri: str) -> Iterator[None]:
    """Lock the database: two processes that create the tables of a new SQLite file at the same time would damage
    them."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    held = locks.acquire_file(Path(tempfile.gettempdir()) / f"tap_ray-mlflow-{os.getuid()}.lock", -1)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def _experiment(client: "MlflowClient") -> str:
    """Id of our experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise StorageError(
                f"The MLflow experiment {name!r} was deleted. Restore it (mlflow experiments restore -x "
                f"{found.experiment_id}), or set MLFLOW_EXPERIMENT_NAME to another one."
            )
        return found.experiment_id
    # A server decides itself where artifacts live; for our own database MLflow would scatter them into ./mlruns.
    place = None if os.environ.get("MLFLOW_TRACKING_URI") else (Path("mlartifacts") / name).resolve().as_uri()
    try:
        return client.create_experiment(name, artifact_location=place)
    except MlflowException:  # another job was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _exists(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(key, value) for key, value in flatten(params).items()]
    for begin in range(0, len(flat), MAX_PARAMS):
        client.log_batch(run_id, params=flat[begin : begin + MAX_PARAMS])


def _key(name: str) -> str:
    """A metric's or parameter's name, limited to MLflow's characters and length."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:MAX_KEY]
