"""Stage 2: learn what to do, from demonstrations with instructions, on Stage 1 weights or from scratch."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from tap_ray import runs
from tap_ray.align.demos import AlignConfig, demo_windows, from_dataset
from tap_ray.config import run_job
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed import stream
from tap_ray.distributed.train import WorkersConfig, run_stage
from tap_ray.models.policy import PolicyConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.session import Learner, learner_of

SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class AlignJobConfig:
    """Which demonstrations, on which weights, and on how many processes."""

    demos: Path
    """Data set of demonstrations."""
    init: str
    """Run folder of Stage 1 (jobs.pretrain); or "scratch", the baseline."""
    train: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    workers: Annotated[WorkersConfig, arg(name="")] = field(default_factory=WorkersConfig)
    out: Path | None = None
    """Run folder; without it runs/align-<hash>."""


def learner(config: AlignJobConfig, windows: WindowConfig, init: Path | None) -> Learner:
    """What learns, built in each training process."""
    stage, _ = from_dataset(
        open_dataset(config.demos),
        windows,
        policy=config.policy,
        config=config.align,
        init=init,
        seed=config.train.seed,
    )
    return learner_of(stage)


def main(config: AlignJobConfig) -> Path:
    """Train, print the metrics on held-out demonstrations; returns the run folder."""
    demos, init = config.demos.resolve(), None if config.init == SCRATCH else Path(config.init).resolve()
    if init is not None:
        runs.require_done(init, job="pretrain")
    windows = demo_windows(replace(config.windows, batch_size=config.train.batch_size))
    build = partial(learner, replace(config, demos=demos), windows, init)
    build()  # a checkpoint that is missing or does not fit is said before Ray starts
    how = {"decoders": config.workers.decoders, "memory_mb": config.workers.stream_memory_mb}
    batches = partial(stream.batches, demos, windows, seed=config.train.seed, **how)
    parents = {"demos": config.demos, **({"init": init} if init else {})}
    return run_stage("align", config, learner=build, batches=batches, parents=parents)


if __name__ == "__main__":
    run_job(main, AlignJobConfig)
