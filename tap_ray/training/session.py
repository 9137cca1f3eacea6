"""Runs a training in its run folder: where it resumes, what it writes, and its lock. With one process or many, with or
without Ray.

    metrics.jsonl                {"step": 50, "play/loss": 0.31, ...}, one line for each time something was logged
    checkpoints/step-00000500/   see checkpoint.py; only the newest are kept
    .lock                        held by the first training process, which writes the two above (of a sharded model
                                 each writes its shards), see locks.py

The newest complete checkpoint alone determines where a run resumes. On resuming, the lines of metrics.jsonl behind it
are dropped, so that no step is there twice and the curve equals that of an uninterrupted run.
"""

import contextlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Protocol

import torch
from torch import nn

from tap_ray import logs
from tap_ray.errors import CheckpointError
from tap_ray.locks import Lock, acquire
from tap_ray.models.token_head import TokenHead
from tap_ray.models.vlm import VlmPolicy
from tap_ray.models.vlm_files import require_attention
from tap_ray.runs import read_json
from tap_ray.training import checkpoint
from tap_ray.training.loop import Hooks, Objective, TrainConfig, fit
from tap_ray.training.sharding import Each, of_all, shared_map, take_first_buffers
from tap_ray.types import ActionChunkBatch, Shard, Window

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
KEEP = 2
"""Number of checkpoints that are kept: the newest, and the one before it in case the newest is damaged."""
CPU = torch.device("cpu")
LOCK_WAIT_S = 30.0
"""How long to wait for the lock of a killed process to be released, s."""


class Trainable(Protocol):
    """What training needs of a stage: `training.stage.Stage` or `pretrain.motion_prior.PriorStage`."""

    @property
    def network(self) -> nn.Module:
        """The network without DDP or compilation wrappers. Its weights come from `TrainConfig.seed` or from an earlier
        stage."""
        ...

    @property
    def objective(self) -> Objective: ...
    @property
    def lr_scale(self) -> Mapping[str, float]:
        """See `optim.adamw`."""
        ...

    def validate(self, *, each: Each = map) -> dict[str, float]:
        """Metrics of the network on held-out data; called on every worker. `each(score, items)` returns the scores of
        all items, which the workers share among each other."""
        ...

    def save(self, run: Path) -> object:
        """Write what later stages load into the run folder; called once, at the end, on the first worker."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Plain JSON that must be equal on resuming (the model's config)."""
        ...


class Batches(Protocol):
    """A worker's endless windows from batch `shard.start_batch` on, always the same ones."""

    def __call__(self, *, shard: Shard) -> Iterator[Window | ActionChunkBatch]: ...


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a training process needs to know; pickles, with functions of modules and `functools.partial`."""

    run: Path
    """The run folder, absolute; on a cluster on storage that all machines see."""
    build: Callable[[], Trainable]
    """Builds the stage, in each training process."""
    batches: Batches
    config: TrainConfig
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Additional plain JSON that must be equal on resuming, e.g. the number of episodes."""
    threads: int = 1
    """Threads of torch in each process."""
    deterministic: bool = False
    """See `WorkersConfig`; it holds for the rest of the process."""
    async_checkpoints: bool = False
    """Whether training continues while a checkpoint is written."""


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """The rank of a training process, and how the processes work together."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    """Wraps the model so that the workers' gradients are averaged."""
    sharded: bool = False
    """Whether `prepare` shards the model: then each worker writes its shards into a checkpoint."""
    leaving: Callable[[], Iterable[str]] = tuple
    """Names of the machines of this training that will be preempted, as far as this worker knows."""


def work(job: TrainJob, context: WorkerContext | None = None) -> None:
    """Train in this process, from the newest checkpoint of the run folder on, to the end.

    Raises:
        CheckpointError: the newest checkpoint does not fit, or another process trains in this folder.
        ConfigError: this process cannot compute attention as requested.
        TapRayError: see `loop.fit`.
    """
    context = context or WorkerContext()
    first = context.rank == 0
    torch.set_num_threads(job.threads)
    if job.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product on a GPU
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    saves = first or context.sharded  # of a sharded model each worker writes its own shards
    with _saver(job, first=first) if saves else contextlib.nullcontext() as saver:
        resume = of_all(checkpoint.latest(job.run / CHECKPOINTS) if first else None)[0]
        step, had = _resume_point(resume)
        if first:
            forget_after(job.run / METRICS, step)
            checkpoint.remove_half_written(job.run / CHECKPOINTS)
        stage = job.build()
        if isinstance(stage.network, VlmPolicy):
            require_attention(stage.network.config.vlm, context.device)
        shard = _shard(context, step, had, job.config)
        hooks = Hooks(
            log=partial(_log, job, context) if first else _silent,
            save=saver or _silent,
            save_copies=saves and job.async_checkpoints,
            validate=partial(_validate, stage, context),
            prepare=context.prepare,
            device=context.device,
            rank=context.rank,
            metadata={**stage.metadata(), **job.metadata},
            position=partial(_position, shard, step, job.config),
            leaving=_Leaving(context),
        )
        batches = job.batches(shard=shard)
        fit(
            stage.network,
            batches,
            stage.objective,
            job.config,
            hooks=hooks,
            resume=resume,
            lr_scale=stage.lr_scale,
        )
        if saver:
            saver.wait()
        if first:
            logs.join(job.run / METRICS)
            _trained(job, stage, context).save(job.run)


def _resume_point(resume: Path | None) -> tuple[int, list[tuple[int, int]] | None]:
    """A checkpoint's step, and (number of workers, batches of each) of each part of the run before it. None instead of
    the parts: the checkpoint does not contain them."""
    if resume is None:
        return 0, []
    state = read_json(resume / "state.json", needs=("step",))
    had = state.get("batches")
    return int(state["step"]), None if had is None else [(int(workers), int(num)) for workers, num in had]


def _shard(context: WorkerContext, step: int, had: list[tuple[int, int]] | None, config: TrainConfig) -> Shard:
    """The part of the data that this worker trains on after a checkpoint."""
    if had is None:  # written before the number of workers could change
        had = [(context.world, step * config.gradient_accumulation_steps)]
    start = had.pop()[1] if had and had[-1][0] == context.world else 0
    return Shard(start_batch=start, worker=context.rank, num_workers=context.world, before=tuple(had))


def _position(shard: Shard, first_step: int, config: TrainConfig, step: int) -> dict[str, Any]:
    """The entry of a checkpoint that `_resume_point` reads, in a run that started from `first_step` with `shard`."""
    worker_batch = shard.start_batch + (step - first_step) * config.gradient_accumulation_steps
    return {"batches": [*shard.before, (shard.num_workers, worker_batch)]}


def _trained(job: TrainJob, stage: Trainable, context: WorkerContext) -> Trainable:
    """The stage with whole weights; for a sharded model a new stage, loaded from the last checkpoint."""
    if not context.sharded:
        return stage
    last, whole = checkpoint.latest(job.run / CHECKPOINTS), job.build()
    assert last is not None
    checkpoint.load_weights(last, whole.network)
    return whole


def _silent(*_: Any) -> None:
    """The first worker writes for all."""


def _log(job: TrainJob, context: WorkerContext, metrics: Mapping[str, float], step: int) -> None:
    """Append a line of metrics; the rate of one worker is converted to that of all, and the wait also to a share of the
    time."""
    line = dict(metrics)
    for key in [key for key in metrics if key.endswith("/samples_per_s")]:
        name = key.removesuffix("samples_per_s")
        step_s = job.config.windows_per_step / metrics[key]
        line |= {
            key: metrics[key] * context.world,
            f"{name}data_wait_pct": 100 * metrics[f"{name}data_wait_s"] / step_s,
        }
    logs.append(job.run / METRICS, json.dumps({"step": step, **line}) + "\n")


def _validate(stage: Trainable, context: WorkerContext) -> dict[str, float]:
    """The stage's held-out metrics, those that the first worker alone would compute."""
    take_first_buffers(stage.network)
    # Generating tokens takes as many forward passes as a batch needs, and in all of them a sharded model needs all
    # workers: they score the same batches.
    generates = isinstance(getattr(stage.network, "head", None), TokenHead)
    return stage.validate(each=map if context.sharded and generates else shared_map)


class _Leaving:
    """Tells whether a machine of the training will be preempted, once for each; every worker gets the same answer.

    Notices reach the workers one after the other, and all workers of a sharded model take part in a checkpoint.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._known: set[str] = set()

    def __call__(self) -> bool:
        before = len(self._known)
        self._known.update(*of_all(tuple(self._context.leaving())))
        return len(self._known) > before


class _Saver:
    """Writes checkpoints into a run folder, one after the other; with `pool` in another thread. Who holds the run's
    lock, the first worker, also deletes old ones."""

    def __init__(self, run: Path, held: Lock | None, pool: ThreadPoolExecutor | None) -> None:
        self._folder, self._held, self._pool = run / CHECKPOINTS, held, pool
        self._writing: Future[None] | None = None

    def __call__(self, step: int, write: Callable[[Path], None]) -> None:
        """Wait for the checkpoint before, then write that of a step, or begin to write it."""
        self.wait()
        if self._pool is None:
            self._save(step, write)
        else:
            self._writing = self._pool.submit(self._save, step, write)

    def wait(self) -> None:
        """Wait until all checkpoints are written; raises the error of one that could not be."""
        if self._writing is not None:
            self._writing.result()

    def _save(self, step: int, write: Callable[[Path], None]) -> None:
        if self._held is not None:
            self._held.require()
        write(self._folder / checkpoint.STEP_FOLDER.format(step=step))
        if self._held is None:
            return
        # Another worker may have begun the next one of a sharded model.
        whole = sorted(path for path in self._folder.glob("step-*") if (path / checkpoint.STATE).is_file())
        for old in whole[:-KEEP]:
            checkpoint.remove(old)


@contextlib.contextmanager
def _saver(job: TrainJob, *, first: bool) -> Iterator[_Saver]:
    """Make what writes a run's checkpoints; the first worker locks the run folder."""
    with lock(job.run) if first else contextlib.nullcontext() as held, ThreadPoolExecutor(max_workers=1) as pool:
        yield _Saver(job.run, held, pool if job.async_checkpoints else None)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[Lock]:
    """Lock the run folder for training. The lock of a killed process is released by itself.

    Raises:
        CheckpointError: another process still has it after LOCK_WAIT_S.
    """
    held = acquire(run, timeout_s=LOCK_WAIT_S, lock_file=".lock")
    if held is None:
        raise CheckpointError(
            f"Another process is training in {run}. Wait for it, stop it, or name another folder with --out."
        )
    try:
        yield held
    finally:
        held.close()


def forget_after(file: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a truncated line."""
    if not logs.exists(file):
        return
    kept = [line for line in read_metrics(file) if line["step"] <= step]
    logs.rewrite(file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Read all complete lines of metrics.jsonl, oldest first; none if there is no file."""
    return parse_metrics(logs.read(file).decode()) if logs.exists(file) else []


def parse_metrics(text: str) -> list[dict[str, float]]:
    """Parse complete lines of metrics; a truncated line is ignored."""
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
