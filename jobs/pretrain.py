"""Stage 1: learn to move, from play. Run the same command again and it goes on from its newest checkpoint."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import envs
from jobs import collect_play
from tap_ray.config import run_job
from tap_ray.dataset.reader import open_dataset
from tap_ray.distributed import live, stream
from tap_ray.distributed.train import StageConfig, run_stage
from tap_ray.errors import ConfigError
from tap_ray.play.settings import PlayJobConfig, plan_of
from tap_ray.pretrain import inverse_dynamics as idm
from tap_ray.training.session import Learner, learner_of


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """What is learnt from which play, and on how many processes."""

    data: Path | None = None
    """Data set of play; not with --live-play."""
    live_play: bool = False
    """Train on endless fresh play straight from the robots; nothing is stored but the episodes to judge on."""
    play: PlayJobConfig = field(default_factory=lambda: PlayJobConfig(episodes=64))
    """Who plays with --live-play; `episodes` are set aside for statistics and for judging."""
    objective: Literal["idm"] = "idm"
    """What is learnt: "idm", inverse dynamics."""
    idm: idm.InverseDynamicsConfig = field(default_factory=idm.InverseDynamicsConfig)


def learner(config: PretrainConfig, data: Path) -> Learner:
    """What learns, built in each training process."""
    windows = replace(config.sized_windows(), **({"holdout_every": 2} if config.live_play else {}))
    parts = {"policy": config.policy, "config": config.idm, "seed": config.train.seed}
    return learner_of(idm.from_dataset(open_dataset(data), windows, **parts))


def main(config: PretrainConfig) -> Path:
    """Train, print the metrics on held-out play; returns the run folder."""
    if (config.data is None) != config.live_play:
        raise ConfigError("Pretraining needs a data set of play, --data PATH, or --live-play, and not both.")
    return _live(config) if config.data is None else _stored(config, config.data.resolve())


def _stored(config: PretrainConfig, data: Path) -> Path:
    build = partial(learner, config, data)
    build()  # what is wrong with the data or the sizes is said before Ray starts
    batches = partial(stream.batches, data, config.sized_windows(), seed=config.train.seed, **config.workers.stream())
    return run_stage("pretrain", config, learner=build, batches=batches, parents={"data": data})
