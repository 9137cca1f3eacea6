"""Runs one trial of a sweep in its own process: Stage 1 (found or trained once), Stage 2, evaluation.

Each stage is the job's own function, called with a run folder that is named by the hash of what determines it. The
first trial that needs a folder makes it while the others wait; a trial that finds a finished folder uses it. A thread
updates the ledger as the stage proceeds, and sends Stage 2's metrics to Tune (scheduler, TensorBoard) and to the MLflow
run.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from ray import tune

from tap_ray import locks, runs, tracking
from tap_ray.errors import TapRayError
from tap_ray.evaluate import settings as evaluation
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig, TrainJobConfig, made_by
from tap_ray.sweep.tables import METRICS, TRIALS, TrialRow, read_row, write_row
from tap_ray.sweep.trial import Trial
from tap_ray.training import session
from tap_ray.training.progress import every

LOCKS = ".locks"
"""Folder of a sweep's and a store's locks."""
HEARTBEAT_S = 2.0
"""How often a trial's progress is written to the ledger, s."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The jobs' functions: config -> run folder. They must pickle."""

    pretrain: Callable[[PretrainConfig], Path]
    prior: Callable[[PriorJobConfig], Path]
    align: Callable[[AlignJobConfig], Path]
    evaluate: Callable[[EvaluateConfig], Path]


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """What the process of every trial gets."""

    folder: Path
    """The sweep's run folder, absolute."""
    store: Path
    """Where the stages' run folders lie, absolute; sweeps that share it share what they train."""
    trials: Mapping[str, Trial]
    stages: Stages
    protocol: Protocol
    """Protocol of all evaluations."""
    fleets: int
    """Processes that evaluate a trial."""
    evaluate: bool
    """Whether trials are evaluated, or only trained (finalists are chosen later)."""
    tracking_uri: str
    mlflow_run_id: str
    """MLflow run of the sweep."""
    any_node: bool = False
    """Whether trials' processes live on any node of the cluster; False: on the head's, whose disk they need."""


def run_trial(point: Mapping[str, str], context: SweepContext) -> None:
    """Run a trial to its end; a Tune function. A user's mistake is recorded as a result, any other error is left to
    Tune's retries."""
    os.environ["MLFLOW_TRACKING_URI"] = context.tracking_uri
    logging.getLogger("ray").setLevel(logging.ERROR)
    trial = context.trials[point["trial"]]
    with locks.exclusive_lock(context.folder / LOCKS, trial.id, on_wait=lambda text: None):
        row = read_row(context.folder, trial.id, trial.values)
        if row.state == "done" or (row.state == "trained" and not context.evaluate):
            return
        row.state, row.error, row.with_play = "running", "", trial.with_play
        try:
            place = context.folder / TRIALS / trial.id
            with tracking.start(
                "trial", place, row.values, {"sweep": context.mlflow_run_id}, run_id=row.mlflow_run_id
            ) as t:
                row.mlflow_run_id = t.run_id
                _TrialRunner(context, trial, row, t).run()
        except TapRayError as error:
            row.state, row.error = "failed", " ".join(str(error).split())
        row.stage = ""
        write_row(context.folder, row)


class _TrialRunner:
    """A running trial."""

    def __init__(self, context: SweepContext, trial: Trial, row: TrialRow, tracked: tracking.Run) -> None:
        self._context, self._trial, self._row, self._tracked = context, trial, row, tracked
        self._lock = threading.Lock()
        self._stopped = False
        self._reset()

    def run(self) -> None:
        """Run all stages, one after the other."""
        trial, context, align = self._trial, self._context, self._trial.align
        init = prior = None
        if trial.pretrain:
            init = self._train("pretrain", trial.pretrain, trial.pretrain.parents(), context.stages.pretrain)
            self._row.stage_1 = session.final_metrics(init)
            align = replace(align, init=str(init))
        if trial.prior:
            prior = self._train("prior", trial.prior, trial.prior.parents(), context.stages.prior)
            align = replace(align, prior=prior)
        parents = {"demos": align.demos, "init": init, "prior": prior, **align.play_parents()}
        policy = self._train("align", align, parents, context.stages.align)
        self._row.validation = session.final_metrics(policy)
        if context.evaluate:
            self._evaluate(policy)
        self._row.state = "done" if context.evaluate else "trained"

    def _train(self, stage: str, config: Any, parents: Mapping[str, Path | None], main: Callable[[Any], Path]) -> Path:
        job = "align" if stage == "align" else "pretrain"
        known = {role: path for role, path in parents.items() if path}
        path = runs.folder_of(self._context.store, job=job, config=made_by(config), parents=known)
        trained = self._run_stage(
            stage, path, lambda: main(replace(config, out=path)), f"of {config.train.steps} steps"
        )
        if trained:
            self._row.worked[stage] = min(trained_s(path, config), self._row.seconds[stage])
        return path

    def _evaluate(self, policy: Path) -> None:
        config = replace(self._trial.evaluate, policy=str(policy), fleets=self._context.fleets)
        what = evaluation.made_by(config, self._context.protocol)
        path = runs.folder_of(self._context.store, job="evaluate", config=what, parents={"policy": policy})
        of = f"of {len(cells(self._context.protocol))} cells"
        run = partial(self._context.stages.evaluate, replace(config, out=path))
        has_run = self._run_stage("evaluate", path, run, of)
        summary = runs.read_json(path / "results.json")
        self._row.result = result_of(summary)
        if has_run:
            self._row.worked["evaluate"] = min(summary["seconds"] / config.fleets, self._row.seconds["evaluate"])
        self._tracked.log({f"evaluate/{name}": summary[name] for name in METRICS}, step=self._trial.align.train.steps)

    def _run_stage(self, stage: str, path: Path, make: Callable[[], Path], of: str) -> bool:
        """Run a stage under its lock unless its folder is finished; returns whether it had to be run."""
        self._row.runs[stage] = str(path)
        with (
            self._reporting(stage, path, of),
            locks.exclusive_lock(self._context.store / LOCKS, path.name, on_wait=self._note_wait),
        ):
            todo = not runs.is_done(path)
            if todo:
                self._note = ""
                make()
        return todo

    def _note_wait(self, text: str) -> None:
        self._note = text

    def _reset(self) -> None:
        self._stage, self._path, self._of, self._note = "", Path(), "", ""
        self._seen = self._offset = 0

    @contextlib.contextmanager
    def _reporting(self, stage: str, path: Path, of: str) -> Iterator[None]:
        """While a stage runs, write its progress to the ledger; at its end, all that it has logged."""
        self._reset()
        self._stage, self._path, self._of = stage, path, of
        self._began, self._before = time.monotonic(), self._row.seconds.get(stage, 0.0)
        self._heartbeat()
        with every(HEARTBEAT_S, self._heartbeat):
            yield
        self._heartbeat()
        if self._stopped:
            sys.exit(0)

    def _heartbeat(self) -> None:
        with self._lock:
            if self._stopped:
                return
            self._row.seconds[self._stage] = self._before + time.monotonic() - self._began
            lines = self._new_lines()
            self._row.stage = f"{self._stage} {self._note or f'{self._seen} {self._of}'}"
            write_row(self._context.folder, self._row)
            for line in lines if self._stage == "align" else []:
                self._report(line)

    def _new_lines(self) -> list[dict[str, Any]]:
        """The lines that the stage has logged since the last call, and its progress."""
        file = self._path / ("episodes.jsonl" if self._stage == "evaluate" else session.METRICS)
        lines = session.read_metrics(file)
        fresh = lines[self._offset :]
        self._offset = max(self._offset, len(lines))
        self._seen = len(lines) if self._stage == "evaluate" else max((int(line["step"]) for line in lines), default=0)
        return fresh

    def _report(self, line: dict[str, float]) -> None:
        step = int(line["step"])
        if step > self._row.logged_step:
            self._tracked.log({name: value for name, value in line.items() if name != "step"}, step)
            self._row.logged_step = step if any("val_loss" in name for name in line) else step - 1
        try:
            tune.report({**line, "step": step})
        except SystemExit:  # the scheduler has stopped this trial: the driver writes that into the ledger
            self._stopped = True
            raise


def trained_s(path: Path, config: TrainJobConfig) -> float:
    """Seconds that a run spent in training steps (waiting for data included) and validation, from what it logged."""
    windows, before, seconds = config.train.windows_per_step, 0, 0.0
    for line in session.read_metrics(path / session.METRICS):
        rate = next((value for name, value in line.items() if name.endswith("/samples_per_s")), None)
        seconds += sum(value for name, value in line.items() if name.endswith("/validate_s"))
        if rate:
            seconds += (line["step"] - before) * windows * config.workers.num_workers / rate
            before = line["step"]
    return seconds


def result_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of results.json that the ledger keeps."""
    scores = [score for row in summary["tasks"].values() for score in row.values()]
    counts = {kind: sum(score[kind]["k"] for score in scores) for kind in ("partial", "entire")}
    kept = {name: summary[name] for name in (*METRICS, "avg_partial_interval", "avg_entire_interval")}
    tasks = {
        task: {kind: [sum(s[kind]["k"] for s in row.values()), sum(s["n"] for s in row.values())] for kind in counts}
        for task, row in summary["tasks"].items()
    }
    return {**kept, "k": counts, "n": sum(score["n"] for score in scores), "tasks": tasks}
