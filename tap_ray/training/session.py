"""A training run in its folder: where it continues, what it writes, who may write. One process or many, Ray or not.

    metrics.jsonl                {"step": 50, "idm/loss": 0.31, ...}, one line for each time something was logged
    checkpoints/step-00000500/   see checkpoint.py; only the newest are kept
    .lock                        held by the one process that writes the two above, see locks.py

The newest whole checkpoint is the only truth about where a run stands. On resuming, the lines of metrics.jsonl
behind it are dropped, so that no step is there twice and the curve equals that of an uninterrupted run.
"""

import contextlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Protocol

import torch
from torch import nn

from tap_ray import logs
from tap_ray.errors import CheckpointError
from tap_ray.locks import Held, hold
from tap_ray.runs import read_json
from tap_ray.training import checkpoint
from tap_ray.training.loop import Hooks, Objective, TrainConfig, fit
from tap_ray.types import ActionChunkBatch, Shard, Window

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
KEEP = 2
"""Checkpoints kept: the newest, and one before it in case the disk spoilt the newest."""
CPU = torch.device("cpu")
LOCK_WAIT_S = 30.0
"""How long to wait for a killed predecessor to let go of the run folder, s."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns, built anew in each training process."""

    model: nn.Module
    """Bare. Weights from `TrainConfig.seed` or from an earlier stage."""
    objective: Objective
    validate: Callable[[], dict[str, float]]
    """Metrics of `model` on held-out data; asked on the first worker only."""
    export: Callable[[Path], object]
    """Writes what later stages load into the run folder; asked once, at the end, on the first worker."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON that must be equal on resuming (the model's config)."""
    lr_scale: Mapping[str, float] | None = None
    """See `optim.adamw`."""


class Trainable(Protocol):
    """A stage, as far as training it goes: `training.stage.Stage` or `pretrain.motion_prior.PriorStage`."""

    @property
    def network(self) -> nn.Module: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def lr_scale(self) -> dict[str, float]: ...
    def validate(self) -> dict[str, float]: ...
    def save(self, run: Path) -> Path: ...
    def facts(self) -> dict[str, Any]: ...


def learner_of(stage: Trainable, *, episodes: int) -> Learner:
    """A stage as a learner. `episodes`: of the data, which must not have grown when the run is taken up again."""
    return Learner(
        model=stage.network,
        objective=stage.objective,
        validate=stage.validate,
        export=stage.save,
        facts={**stage.facts(), "episodes": episodes},
        lr_scale=stage.lr_scale,
    )


class Batches(Protocol):
    """A worker's endless windows from batch `shard.start_batch` on, always the same ones."""

    def __call__(self, *, shard: Shard) -> Iterator[Window | ActionChunkBatch]: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training process needs to know; pickles, with functions of modules and `functools.partial`."""

    run: Path
    """The run folder, absolute; on a cluster on storage that all machines see."""
    learner: Callable[[], Learner]
    batches: Batches
    config: TrainConfig
    threads: int = 1
    """Threads of torch in each process."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of how many training processes this is."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    """Wraps the model so that the workers' gradients are averaged."""
    agree: Callable[[Any], Any] = lambda value: value
    """Gives every worker the first worker's value."""
    leaving: Callable[[], bool] = lambda: False
    """Whether a checkpoint is due now, out of turn, because this machine is to be taken away."""


def work(task: Task, place: Place | None = None) -> None:
    """Train in this process, from the newest checkpoint of the run folder on, to the end.

    Raises:
        CheckpointError: the newest checkpoint does not fit, or another process trains in this folder.
        TapRayError: see `loop.fit`.
    """
    place = place or Place()
    first = place.rank == 0
    torch.set_num_threads(task.threads)
    with lock(task.run) if first else contextlib.nullcontext() as held:
        resume = place.agree(checkpoint.latest(task.run / CHECKPOINTS) if first else None)
        step = int(read_json(resume / "state.json", needs=("step",))["step"]) if resume else 0
        if first:
            forget_after(task.run / METRICS, step)
            checkpoint.remove_half_written(task.run / CHECKPOINTS)
        learner = task.learner()
        hooks = Hooks(
            log=partial(_log, task, place) if first else _silent,
            save=partial(_save, task, held) if held else _silent,
            validate=learner.validate if first else dict,
            prepare=place.prepare,
            device=place.device,
            rank=place.rank,
            facts=learner.facts,
            leaving=place.leaving,
        )
        batches = task.batches(shard=Shard(start_batch=step, worker=place.rank, num_workers=place.world))
        fit(
            learner.model,
            batches,
            learner.objective,
            task.config,
            hooks=hooks,
            resume=resume,
            lr_scale=learner.lr_scale,
        )
        if first:
            logs.join(task.run / METRICS)
            learner.export(task.run)


def _silent(*_: Any) -> None:
    """The first worker writes for all."""


def _log(task: Task, place: Place, metrics: Mapping[str, float], step: int) -> None:
    """Append a line; the rate of one worker becomes that of all, the wait also a part of the time."""
    line = dict(metrics)
    for key in [key for key in metrics if key.endswith("/samples_per_s")]:
        name = key.removesuffix("samples_per_s")
        step_s = task.config.batch_size / metrics[key]
        line |= {key: metrics[key] * place.world, f"{name}data_wait_pct": 100 * metrics[f"{name}data_wait_s"] / step_s}
    logs.append(task.run / METRICS, json.dumps({"step": step, **line}) + "\n")


def _save(task: Task, held: Held, step: int, write: Callable[[Path], None]) -> None:
    held.require()
    folder = task.run / CHECKPOINTS
    write(folder / checkpoint.STEP_FOLDER.format(step=step))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        checkpoint.remove(old)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[Held]:
    """Be the only process that trains in this folder. A killed process lets go by itself.

    Raises:
        CheckpointError: another process still has it after LOCK_WAIT_S.
    """
    held = hold(run, patience_s=LOCK_WAIT_S, marker=".lock")
    if held is None:
        raise CheckpointError(
            f"Another process trains in {run}. Wait for it, stop it, or name another folder with --out."
        )
    try:
        yield held
    finally:
        held.close()


def forget_after(file: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and one that a kill truncated."""
    if not logs.exists(file):
        return
    kept = [line for line in read_metrics(file) if line["step"] <= step]
    logs.rewrite(file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(file: Path) -> list[dict[str, float]]:
    """All whole lines of metrics.jsonl, oldest first; none if there is no file."""
    return parse_metrics(logs.read(file).decode()) if logs.exists(file) else []


def parse_metrics(text: str) -> list[dict[str, float]]:
    """Whole lines of metrics; one that a kill truncated is left out."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def newest_step(run: Path) -> int:
    """Step of a run's newest checkpoint; 0 without one."""
    newest = checkpoint.latest(run / CHECKPOINTS)
    return int(read_json(newest / "state.json", needs=("step",))["step"]) if newest else 0


def final_metrics(run: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    last: dict[str, float] = {}
    for line in read_metrics(run / METRICS):
        last |= line
    return last
