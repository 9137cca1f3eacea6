"""Connects a stage with the training loop: model, objective, validation, and how the result is saved."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from torch import nn

from tap_ray.dataset.reader import DatasetInfo
from tap_ray.dataset.windows import WindowConfig, group_batches, split_episodes
from tap_ray.errors import ConfigError, DataError
from tap_ray.models.build import PolicyBundle, save_bundle
from tap_ray.models.policy import PolicyConfig, plain
from tap_ray.rng import generator
from tap_ray.training.loop import Objective
from tap_ray.training.sharding import Each
from tap_ray.training.validation import score_policy
from tap_ray.types import Window

FINAL = "final"
"""Folder of the trained policy within a run."""

HELD_OUT_WINDOWS = 1024
"""Number of validation windows; with it the standard error of an R^2 near 0.9 is below 0.01."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage ready for `fit(stage.model.network, batches, stage.objective, ...)`."""

    model: PolicyBundle
    objective: Objective
    held_out: Sequence[Window]
    """Held-out windows; without any there is no validation."""
    lr_scale: dict[str, float]
    """Prefix of a parameter's name -> factor on its learning rate, for `fit`."""
    held_out_of: Sequence[str] = ()
    """Of a mixture, the name of the dataset of each of `held_out`."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.model.network

    def validate(self, *, each: Each = map) -> dict[str, float]:
        """Metrics on the held-out windows; see `score_policy`. {} without any."""
        if not self.held_out:
            return {}
        model = self.model
        parts = self.held_out_of
        return score_policy(model.network, self.objective, self.held_out, model.spec, parts=parts, each=each)

    def metadata(self) -> dict[str, Any]:
        """For `Hooks.metadata`: what must be equal when training resumes from a checkpoint."""
        return {"policy": plain(self.model.network.config), "robot": self.model.spec.robot}

    def save(self, run: Path) -> Path:
        """Write the trained policy into `run`/final and return that folder."""
        save_bundle(run / FINAL, self.model)
        return run / FINAL


def resolve_sizes(policy: PolicyConfig, dataset: DatasetInfo, windows: WindowConfig) -> PolicyConfig:
    """Complete the policy's sizes from dataset and windows; any `num_state` above 0 becomes the number of state
    slots."""
    size_y, size_x = dataset.header.image_size
    if size_y != size_x:
        raise ConfigError(
            f"{dataset.path} has {size_y} x {size_x} images, but a policy needs square ones. Collect or import the "
            "dataset again with square images."
        )
    num_state = len(dataset.spec.state) if policy.num_state else 0
    sizes = {"image_size": size_y, "num_cameras": len(dataset.spec.cameras), "chunk": windows.horizon}
    return replace(policy, num_state=num_state, **sizes)


def require_held_out(dataset: DatasetInfo, config: WindowConfig) -> np.ndarray:
    """(E,) int64 indices of the held-out episodes.

    Raises:
        DataError: no episode is held out though some should be.
    """
    _, episodes = split_episodes(dataset, config)
    if config.holdout_every and not len(episodes):
        raise DataError(
            f"{dataset.path}: no episode is held out (every {config.holdout_every}-th of {len(dataset)} would be). "
            "Collect more episodes, or use a smaller --windows.holdout-every."
        )
    return episodes


def held_out_windows(
    dataset: DatasetInfo, config: WindowConfig, *, seed: int, num: int = HELD_OUT_WINDOWS
) -> list[Window]:
    """The same `num` (or fewer, if there are no more) windows at every call, spread over all held-out episodes.

    None if no episodes are held out (`holdout_every` 0).

    Raises:
        DataError: no episode is held out though some should be.
    """
    return scale_windows(dataset, config, seed=seed, num=num) if config.holdout_every else []


def scale_windows(
    dataset: DatasetInfo, config: WindowConfig, *, seed: int, num: int = HELD_OUT_WINDOWS
) -> list[Window]:
    """The windows that give the scale of the reach targets: `held_out_windows`, or if no episodes are held out as many
    of the training episodes.

    Raises:
        DataError: no episode is held out though some should be.
    """
    episodes = require_held_out(dataset, config) if config.holdout_every else split_episodes(dataset, config)[0]
    order = generator(seed, "held_out").permutation(episodes)
    frames = int(dataset.lengths[order].cumsum()[-1])
    enough = order if frames <= 2 * num else order[: max(1, len(order) * 2 * num // frames)]
    batches = group_batches(dataset, enough, replace(config, drop_last=False, segment=1), seed=seed, epoch=0)
    return list(itertools.islice(batches, -(-num // config.batch_size)))
