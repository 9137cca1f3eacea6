"""Builds each stage from its job's settings: in the driver to find errors early, and in each training process."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

from tap_ray import runs, storage
from tap_ray.align.demos import StartFrom, from_dataset, resolve_configs
from tap_ray.dataset.mixture import Mixture, open_mixture, require_like, require_usable
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prior_files import TrainedPrior, load_prior
from tap_ray.pretrain import from_play, motion_prior
from tap_ray.settings import SCRATCH, AlignJobConfig, PretrainConfig, PriorJobConfig, roles_of
from tap_ray.training.stage import FINAL, Stage


def pretrain_windows(config: PretrainConfig) -> WindowConfig:
    """The windows that Stage 1 is validated on."""
    windows = config.resolve_windows()
    if config.live_play:  # not trained on: one half normalizes, the other validates and scales the reach targets
        windows = replace(windows, holdout_every=2, num_episodes=config.play.episodes)
    return windows


def pretrain_stage(config: PretrainConfig, mixture: Mixture) -> Stage:
    """Build Stage 1 on datasets as the driver opened them; episodes that are added later are not used."""
    return from_play.from_mixture(
        mixture, pretrain_windows(config), policy=config.policy, config=config.objective, seed=config.train.seed
    )


def prior_stage(config: PriorJobConfig, sets: Sequence[DatasetInfo]) -> motion_prior.PriorStage:
    """Build the motion prior on datasets as the driver opened them."""
    _, weights = config.sources()
    windows = config.resolve_windows()
    return motion_prior.from_datasets(sets, weights, windows, config=config.prior, seed=config.train.seed)


@dataclass(frozen=True, kw_only=True)
class AlignInputs:
    """The inputs of Stage 2, opened once; can be pickled."""

    demos: DatasetInfo
    play: Mixture | None = None
    """Play that is trained on together with the demonstrations."""
    init: Path | None = None
    """Run folder of Stage 1."""
    prior_run: Path | None = None
    prior: TrainedPrior | None = None

    def parents(self) -> dict[str, Path]:
        """Role -> folder."""
        play = [] if self.play is None else [dataset.path for dataset in self.play.sets]
        roles = {"demos": self.demos.path, "init": self.init, "prior": self.prior_run, **roles_of("play", play)}
        return {role: path for role, path in roles.items() if path is not None}


def open_align(config: AlignJobConfig) -> AlignInputs:
    """Open the inputs of Stage 2.

    Raises:
        CheckpointError: Stage 1 or the motion prior is missing or has not finished.
        DataError: a dataset is missing or damaged, or too small.
        SpecError: play is of another robot than the demonstrations, or has other conventions.
    """
    init = None if config.init == SCRATCH else storage.to_path(config.init).resolve()
    prior = None if config.prior is None else config.prior.resolve()
    for run in (init, prior):
        if run is not None:
            runs.require_done(run, job="pretrain")
    demos, play = open_dataset(config.demos.resolve()), None
    if config.play:
        play = open_mixture(*config.play_sources())
        for dataset in play.sets:
            require_like(dataset, demos)
        require_usable(play, config.play_windows(), num_workers=config.workers.num_workers)
    return AlignInputs(
        demos=demos,
        play=play,
        init=init,
        prior_run=prior,
        prior=load_prior(prior / FINAL) if prior else None,
    )


def align_shapes(config: AlignJobConfig, prior: TrainedPrior | None) -> tuple[PolicyConfig, WindowConfig]:
    """The policy's sizes, and the windows of demonstrations."""
    windows = config.resolve_windows()
    return resolve_configs(
        config.policy, windows, config=config.align, prior=prior, history=config.history, play=bool(config.play)
    )


def align_stage(config: AlignJobConfig, inputs: AlignInputs) -> Stage:
    """Build Stage 2, and print which weights were loaded from Stage 1."""
    policy, windows = align_shapes(config, inputs.prior)
    stage, transfer = from_dataset(
        inputs.demos,
        windows,
        policy=policy,
        config=config.align,
        start=StartFrom(init=inputs.init, prior=inputs.prior),
        play=inputs.play is not None,
        seed=config.train.seed,
    )
    if transfer is not None:
        print(f"Stage 1 weights {transfer}")
    return stage
