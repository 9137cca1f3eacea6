"""Stage 1: learn to move, from play. Goes on from its newest checkpoint when the same command is run again."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from tap_ray.config import run_job
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed import stream
from tap_ray.distributed.train import WorkersConfig, run_stage
from tap_ray.models.policy import PolicyConfig
from tap_ray.pretrain import inverse_dynamics
from tap_ray.pretrain.inverse_dynamics import InverseDynamicsConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.session import Learner, learner_of


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What is learnt from which play, and on how many processes."""

    data: Path
    """Data set of play."""
    objective: Literal["idm"] = "idm"
    """What is learnt: "idm", inverse dynamics."""
    train: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    idm: InverseDynamicsConfig = field(default_factory=InverseDynamicsConfig)
    workers: Annotated[WorkersConfig, arg(name="")] = field(default_factory=WorkersConfig)
    out: Path | None = None
    """Run folder; without it runs/pretrain-<hash>."""


def learner(config: PretrainConfig, windows: WindowConfig) -> Learner:
    """What learns, built in each training process."""
    dataset = open_dataset(config.data)
    stage = inverse_dynamics.from_dataset(
        dataset, windows, policy=config.policy, config=config.idm, seed=config.train.seed
    )
    return learner_of(stage)


def main(config: PretrainConfig) -> Path:
    """Train, print the metrics on held-out play; returns the run folder."""
    data = config.data.resolve()
    windows = replace(config.windows, batch_size=config.train.batch_size)
    build = partial(learner, replace(config, data=data), windows)
    build()  # what is wrong with the data or the sizes is said before Ray starts
    how = {"decoders": config.workers.decoders, "memory_mb": config.workers.stream_memory_mb}
    batches = partial(stream.batches, data, windows, seed=config.train.seed, **how)
    return run_stage("pretrain", config, learner=build, batches=batches, parents={"data": config.data})


if __name__ == "__main__":
    run_job(main, PretrainConfig)
