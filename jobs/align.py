"""Stage 2: learn what to do, from demonstrations with instructions, on Stage 1 weights or from scratch."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from tap_ray import runs, storage
from tap_ray.align.demos import StartFrom, from_dataset, resolve_configs
from tap_ray.dataset.reader import DatasetInfo, open_dataset, require_whole
from tap_ray.dataset.windows import WindowConfig, require_batches
from tap_ray.distributed import stream
from tap_ray.distributed.crops import cut_missing
from tap_ray.distributed.train import require_sensible, run_stage
from tap_ray.job import run_job
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prior_files import TrainedPrior, load_prior
from tap_ray.settings import AlignJobConfig
from tap_ray.training.session import Learner, learner_of
from tap_ray.training.stage import FINAL

SCRATCH = "scratch"


def prior_of(config: AlignJobConfig) -> TrainedPrior | None:
    """The motion prior that is asked for."""
    return load_prior(config.prior / FINAL) if config.prior else None


def shapes(config: AlignJobConfig, prior: TrainedPrior | None) -> tuple[PolicyConfig, WindowConfig]:
    """The policy's sizes, and the windows of demonstrations."""
    play = config.play is not None
    return resolve_configs(
        config.policy, config.sized_windows(), config=config.align, prior=prior, history=config.history, play=play
    )


def learner(config: AlignJobConfig, dataset: DatasetInfo, init: Path | None) -> Learner:
    """What learns, built in each training process; the dataset as the driver has opened it, whoever extends it."""
    prior = prior_of(config)
    policy, windows = shapes(config, prior)
    stage, transfer = from_dataset(
        dataset,
        windows,
        policy=policy,
        config=config.align,
        start=StartFrom(init=init, prior=prior),
        play=config.play is not None,
        seed=config.train.seed,
    )
    if transfer is not None:
        print(f"Stage 1 weights {transfer}")
    return learner_of(stage, episodes=windows.num_episodes or len(dataset))


def main(config: AlignJobConfig) -> Path:
    """Train, print the metrics on held-out demonstrations; returns the run folder."""
    require_sensible(config.train, config.workers)
    demos = config.demos.resolve()
    init = None if config.init == SCRATCH else storage.at(config.init).resolve()
    if init is not None:
        runs.require_done(init, job="pretrain")
    if config.prior is not None:
        runs.require_done(config.prior, job="pretrain")
        config = replace(config, prior=config.prior.resolve())
    play = None if config.play is None else config.play.resolve()
    if play is not None:
        config = replace(config, play=play)
        played = open_dataset(play)
        require_whole(played)
        require_batches(played, config.play_windows(), num_workers=config.workers.num_workers)
        cut_missing(play, config.workers.ray_address)
    if config.align.weights.need_crops:
        cut_missing(demos, config.workers.ray_address)
    dataset = open_dataset(demos)
    build = partial(learner, config, dataset, init)
    built = build()  # a checkpoint that is missing or does not fit is reported before Ray starts
    require_whole(dataset)
    _, windows = shapes(config, prior_of(config))
    config.require_used(windows, built.model.config)
    require_batches(dataset, windows, num_workers=config.workers.num_workers)
    batches = partial(stream.batches, dataset, windows, seed=config.train.seed, **config.workers.stream())
    if play is not None:
        beside = partial(stream.batches, open_dataset(play), config.play_windows(), seed=config.train.seed)
        batches = partial(stream.beside, batches, partial(beside, **config.workers.stream()))
    roles = {"demos": demos, "init": init, "prior": config.prior, "play": config.play}
    parents = {role: parent for role, parent in roles.items() if parent is not None}
    return run_stage("align", config, learner=build, batches=batches, parents=parents)


if __name__ == "__main__":
    run_job(main, AlignJobConfig)
