"""Runs a sweep: Ray Tune starts a process for each trial and stops poor trials; the ledger records which trials are
done.

    file --> trials --> Tune --> trial 000 (a process): pretrain | prior, align, evaluate --> trials/000.json
                            '--> trial 001 ...                  '-- Ray Train, Ray Data, fleets of their own
    here: one bar, MLflow parent, page.html <-- trials/*.json

A trial's own process reserves nothing. The driver counts what the trial's stages will reserve (placement.py: half of
the CPUs, however few there are) and runs only as many trials at once as fit together, so that no two trials wait for
each other's resources. When the cluster grows, more trials run, up to its autoscaler's limits; when it shrinks, fewer
start.

Tune's own record of an experiment is never read. After a kill the same command reads the ledger: finished trials are
not repeated, the others resume from the checkpoints in their run folders.
"""

import contextlib
import logging
import os
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Mapping, Sequence

from ray import tune
from ray.exceptions import RayError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from tap_ray import runs, storage, tracking
from tap_ray.distributed.placement import capacity, release_orphans, share_of
from tap_ray.distributed.sweep_trial import SweepContext, run_trial
from tap_ray.distributed.train import SETTINGS, notes_at
from tap_ray.errors import ConfigError, nearest
from tap_ray.progress_bar import progress_bar
from tap_ray.settings import WorkersConfig
from tap_ray.sweep.plan import AshaConfig
from tap_ray.sweep.tables import TrialRow, read_row, write_row
from tap_ray.sweep.trial import Trial
from tap_ray.training import session
from tap_ray.training.progress import every

TUNE = "tune"
"""Folder of Tune's own files in the run folder; TensorBoard reads it."""
TUNE_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # lines of training and of validation have different metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # we handle Ctrl-C
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "-1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Tune's environment, unless the user has set it."""
ROOM_S = 5.0
"""How often to check how many trials fit into the cluster, s."""
WATCH_S = 2.0
"""How often to read the ledger, s."""
TRIAL_BYTES = 2**30
"""Memory that a trial's own process reserves, bytes; it spreads the processes over the nodes."""
MAX_TRIAL_FAILURES = 3
"""How often a trial's process may die."""
ENDED = ("done", "stopped", "failed", "trained")

Watch = Callable[[Sequence[TrialRow]], None]


def sweep(context: SweepContext, *, limit: int = 0, asha: AshaConfig | None, watch: Watch) -> list[TrialRow]:
    """Run every trial to its end. Ray must be connected.

    Args:
        context: the trials.
        limit: largest number of trials that run at the same time; 0: as many as fit, see `max_concurrent_trials`.
        asha: early stopping; None trains and evaluates every trial.
        watch: called with the ledger every few seconds, and at the end.

    Returns:
        A row for each trial; a failed trial's row gives the reason.
    """
    context = replace(context, evaluate=asha is None)
    with _watched(context, asha, watch):
        todo = [row for row in rows_of(context) if row.state not in ENDED or row.state == "failed"]
        try:
            _tune(context, [row.id for row in todo if not (asha and row.validation)], limit, asha)
            if asha:
                _tune(
                    replace(context, evaluate=True), [row.id for row in finalists(rows_of(context), asha)], limit, None
                )
        except KeyboardInterrupt:
            for row in rows_of(context):
                if row.state == "running":
                    _end_tracking(context, row, "KILLED")
            raise
    return rows_of(context)


def rows_of(context: SweepContext) -> list[TrialRow]:
    """The ledger: a row for each trial."""
    return [read_row(context.folder, trial.id, trial.values) for trial in context.trials.values()]


def finalists(rows: Sequence[TrialRow], asha: AshaConfig) -> list[TrialRow]:
    """The best of the trials that were trained to their end, by their last validation, including those already
    evaluated.

    Raises:
        ConfigError: there is no such metric.
    """
    ended = [row for row in rows if row.validation]
    trained = [row for row in ended if asha.metric in row.validation]
    if ended and not trained:
        raise ConfigError(f"No trial logged asha.metric {asha.metric!r}. {nearest(asha.metric, ended[0].validation)}")
    sign = -1 if asha.mode == "max" else 1
    return sorted(trained, key=lambda row: (sign * row.validation[asha.metric], row.id))[: asha.finalists]


def max_concurrent_trials(trials: Sequence[Trial], resources: Mapping[str, float], limit: int = 0) -> int:
    """How many trials fit into a cluster together.

    Args:
        trials: trials of the sweep.
        resources: "CPU" and "GPU" of the cluster.
        limit: requested number; 0 for as many as fit.

    Raises:
        ConfigError: more trials are requested than fit, or not even one fits.
    """
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)  # no CPU: nodes are still to come
    most = _most(trials, resources)
    has = f"the cluster's {cpus:g} CPUs and {gpus:g} GPUs"
    if most < 1:
        raise ConfigError(
            f"Not even one trial fits into {has}. Lower align.workers (num_workers, gpus), "
            "evaluate.gpus_per_fleet or evaluate.inference.gpus"
            + (", or choose a simulator that needs no GPU (evaluate.sim: maniskill)." if trials[0].gpu_scenes else ".")
        )
    if limit > most or limit < 0:
        raise ConfigError(
            f"--max-concurrent-trials {limit}: {has} have room for {most}; more would wait for each other forever. "
            "Request fewer, or 0 for as many as fit."
        )
    return limit or most


def _most(trials: Sequence[Trial], resources: Mapping[str, float]) -> int:
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)  # no CPU: nodes are still to come
    return min(_fit(trial, cpus, gpus) for trial in trials)


def _fit(trial: Trial, cpus: float, gpus: float) -> int:
    trained = [stage.workers for stage in (trial.pretrain, trial.prior, trial.align) if stage is not None]
    limits = [int(cpus / max(_cpus(workers, cpus) for workers in trained) + 1e-6)]
    on_gpu = [w.num_workers * w.gpus for w in trained if w.gpu != "off" and 0 < w.num_workers * w.gpus <= gpus]
    limits += [int(gpus / taken + 1e-6) for taken in (*on_gpu, trial.least_gpus) if taken]
    return min(limits)


def _cpus(workers: WorkersConfig, cpus: float) -> float:
    """CPUs that a training reserves: its workers, and the tasks that make their data."""
    return workers.num_workers * share_of([cpus], workers.num_workers, 1 + workers.num_data_workers)


class TrialQueue(BasicVariantGenerator):
    """Starts the trials in order, as many at the same time as the cluster currently has resources for."""

    def __init__(self, trials: Sequence[Trial], limit: int) -> None:
        self._trials, self._limit, self._until, self._most = trials, limit, 0.0, 1
        super().__init__()

    @property
    def max_concurrent(self) -> int:
        """Largest number of running trials; Tune reads it before it starts another."""
        if time.monotonic() >= self._until:
            with contextlib.suppress(RayError):  # the next time, then
                self._most = max(1, _most(self._trials, capacity()))
            self._until = time.monotonic() + ROOM_S
        return min(self._most, self._limit or self._most)

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        """Ignored: Tune's constructor sets it."""


def _tune(context: SweepContext, ids: Sequence[str], limit: int, asha: AshaConfig | None) -> None:
    """Run some trials under Tune, in their order."""
    if not ids:
        return
    for name, value in (SETTINGS | TUNE_SETTINGS).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    for id in ids:  # a trial reports from its first step on, so earlier reports would be there twice
        storage.remove(context.folder / TUNE / id)
    # No CPU: a trial waits most of its time. Tune cannot request nothing: on the head it is a bit of the node resource.
    place: dict[str, float] = {"memory": TRIAL_BYTES} if context.any_node else {"node:__internal_head__": 0.001}
    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, context=context), tune.PlacementGroupFactory([place])),
        param_space={"trial": tune.grid_search(list(ids))},
        tune_config=tune.TuneConfig(
            search_alg=TrialQueue(list(context.trials.values()), limit),
            reuse_actors=asha is None,  # a stopped trial continues in its process until that is killed
            scheduler=ResumableASHA(context, asha) if asha else FIFOScheduler(),
            trial_name_creator=_id,
            trial_dirname_creator=_id,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            **notes_at(context.folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES - 1),
            callbacks=[_Recorder(context), _SilentReporter()],
        ),
    ).fit()


def _id(trial: Any) -> str:
    return trial.config["trial"]


class ResumableASHA(ASHAScheduler):
    """Successive halving (ASHA) that continues after a sweep is interrupted and started again.

    A restarted sweep begins with the recorded metrics of its earlier runs. A trial that they let pass a rung is not
    judged there again, although the rung has filled since, and a trial that was trained to the end is no longer
    stopped.
    """

    def __init__(self, context: SweepContext, asha: AshaConfig) -> None:
        self._steps = {id: trial.align.train.steps for id, trial in context.trials.items()}
        self._passed = {row.id: row.logged_step for row in rows_of(context)}
        most = max(self._steps.values())
        super().__init__(
            time_attr="step",
            metric=asha.metric,
            mode=asha.mode,
            max_t=most,
            grace_period=min(asha.grace_steps, most),
            reduction_factor=asha.reduction_factor,
            stop_last_trials=False,
        )
        for row in rows_of(context):
            if row.state == "stopped" or row.validation:
                self._remember(row)

    def _remember(self, row: TrialRow) -> None:
        past: Any = SimpleNamespace(trial_id=f"past-{row.id}", config={"trial": row.id})
        nobody: Any = None
        self.on_trial_add(nobody, past)
        for line in session.read_metrics(storage.to_path(row.runs["align"]) / session.METRICS):
            if row.state != "stopped" or line["step"] <= row.logged_step:  # its process continued until it was killed
                self.on_trial_result(nobody, past, line)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP; a decision of an earlier run is only recorded."""
        decision = super().on_trial_result(tune_controller, trial, result)
        step, id = result.get("step", 0), _id(trial)
        decided = step <= self._passed[id] or step >= self._steps[id]
        return TrialScheduler.CONTINUE if decided else decision


class _SilentReporter(TrialProgressCallback):
    """Replaces Tune's reporter, which prints a line into our progress bar for each trial that ends without a result."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pass


class _Recorder(tune.Callback):
    """Writes into the ledger what only Tune knows: which trials were stopped, and which processes died too often."""

    def __init__(self, context: SweepContext) -> None:
        self._context = context

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = str(trial.get_error() or "its process died").strip().splitlines()[-1]
        self._end(trial, "failed", f"{MAX_TRIAL_FAILURES} times: {reason}")

    def _end(self, trial: Any, state: Any, error: str) -> None:
        row = read_row(self._context.folder, _id(trial), self._context.trials[_id(trial)].values)
        if row.state in ("waiting", "running"):
            row.state, row.error, row.stage = state, error, ""
            if state == "stopped":
                row.logged_step = int((trial.last_result or {}).get("step", row.logged_step))
            write_row(self._context.folder, row)
            _end_tracking(self._context, row, "KILLED" if state == "stopped" else "FAILED")


def _end_tracking(context: SweepContext, row: TrialRow, status: str) -> None:
    """End a trial's MLflow runs on behalf of its process, which was killed."""
    begun = [storage.to_path(path) for path in row.runs.values()]
    cut_off = [row.mlflow_run_id, *(None if runs.is_done(path) else tracking.run_id_of(path) for path in begun)]
    for run_id in filter(None, cut_off):
        tracking.Run(uri=context.tracking_uri, run_id=run_id).finish(status)


@contextlib.contextmanager
def _watched(context: SweepContext, asha: AshaConfig | None, watch: Watch) -> Iterator[None]:
    """While the body runs, update the progress bar, call `watch`, and release the resources that stopped trials still
    reserve."""
    with progress_bar(unit="trial", smoothing=0.0) as bar:
        bar.n, bar.total = progress_of(rows_of(context), asha)
        bar.initial = bar.n

        def look() -> None:
            rows = rows_of(context)
            now = "; ".join(f"{row.id} {row.stage}" for row in rows if row.state == "running")
            bar.set_postfix_str(now, refresh=False)
            ended, bar.total = progress_of(rows, asha)
            bar.update(ended - bar.n)
            bar.refresh()
            watch(rows)

        try:
            with every(WATCH_S, _give_back), every(WATCH_S, look):
                yield
        finally:
            look()


def _give_back() -> None:
    with contextlib.suppress(RayError):  # the next time, then
        release_orphans()


def progress_of(rows: Sequence[TrialRow], asha: AshaConfig | None) -> tuple[int, int]:
    """(number finished, total): trials, and with successive halving also the finalists, which are evaluated later."""
    ended = [row for row in rows if row.state in ENDED or (asha and row.validation)]
    if asha is None:
        return len(ended), len(rows)
    num_evaluated = sum(row.state == "done" or (row.state == "failed" and bool(row.validation)) for row in rows)
    able = sum(bool(row.validation) or row.state not in ("stopped", "failed") for row in rows)
    return len(ended) + num_evaluated, len(rows) + max(num_evaluated, min(asha.finalists, able))
