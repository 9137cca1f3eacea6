"""Mixes several datasets of play of one robot, each with its share of every batch; their order follows from a seed
alone.

    dataset 0, weight 2  -> its `schedule` of batches of 2/3 N -+
    dataset 1, weight 1  -> its `schedule` of batches of 1/3 N -+-> batch b: the b-th of each, end to end

Each dataset cycles through its own episodes, independent of the length of the others. So batch b can be computed
without the ones before it, and a run resumes as with one dataset; a mixture of one dataset equals that dataset.
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from tap_ray.dataset.action_chunks import counts
from tap_ray.dataset.layout import ACTION, STATE
from tap_ray.dataset.reader import DatasetInfo, open_dataset, require_readable, stats_of
from tap_ray.dataset.schedule import require_batches
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import DataError
from tap_ray.rng import seed_of
from tap_ray.specs import RobotSpec, require_compatible
from tap_ray.types import Window


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Opened datasets with their weights. Picklable and small."""

    sets: tuple[DatasetInfo, ...]
    weights: tuple[float, ...]

    @property
    def spec(self) -> RobotSpec:
        """Interface of the robot of all datasets."""
        return self.sets[0].spec

    def windows(self, config: WindowConfig) -> list[WindowConfig]:
        """The windows of each dataset, with its share of a batch and of the episodes that are decoded together.

        Raises:
            ConfigError: a dataset would have no window in a batch.
        """
        return [
            replace(config, batch_size=num, group_size=max(1, round(config.group_size * num / config.batch_size)))
            for num in counts(self.weights, config.batch_size)
        ]

    def seeds(self, seed: int) -> list[int]:
        """The seed of each dataset's order; the first dataset has the run's seed."""
        return [seed_of(seed, "mixture", number) if number else seed for number in range(len(self.sets))]

    @property
    def names(self) -> list[str]:
        """Of each dataset in the names of metrics: its folder's; where two folders have one, with its number."""
        names = [re.sub(r"[^A-Za-z0-9.-]+", "_", dataset.path.name) for dataset in self.sets]
        return [f"{name}_{at}" if names.count(name) > 1 else name for at, name in enumerate(names)]

    def num_episodes(self, config: WindowConfig) -> int:
        """Number of episodes of all datasets, held-out ones included."""
        return sum(config.num_episodes or len(dataset) for dataset in self.sets)


def alone(dataset: DatasetInfo) -> Mixture:
    """A mixture of one dataset."""
    return Mixture(sets=(dataset,), weights=(1.0,))


def open_mixture(paths: Sequence[Path], weights: Sequence[float]) -> Mixture:
    """Open datasets; raises an error for the first that is missing or damaged, or that `require_alike` refuses."""
    sets = tuple(open_dataset(path) for path in paths)
    require_alike(sets)
    return Mixture(sets=sets, weights=tuple(weights))


def require_alike(sets: Sequence[DatasetInfo]) -> None:
    """Raise an error unless one network can be trained on all of these datasets.

    Raises:
        DataError: a dataset is named twice, or has images of another size than the first.
        SpecError: a dataset has another robot, control rate, cameras or conventions; the message names each.
    """
    require_once([dataset.path for dataset in sets])
    for other in sets[1:]:
        require_like(other, sets[0])


def require_once(paths: Sequence[Path]) -> None:
    """Raise DataError for a dataset that is named twice."""
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise DataError(f"{path} is named twice. Name it once: its weight (PATH:WEIGHT) is its share.")


def require_like(other: DatasetInfo, first: DatasetInfo) -> None:
    """Raise unless one network can learn from both; DataError and SpecError as for `require_alike`."""
    have, want = f"dataset {other.path}", f"dataset {first.path}"
    require_compatible(other.spec, first.spec, have_name=have, want_name=want)
    if other.header.image_size != first.header.image_size:
        sizes = [" x ".join(map(str, dataset.header.image_size)) for dataset in (other, first)]
        raise DataError(
            f"The images of {other.path} have {sizes[0]} px, those of {first.path} {sizes[1]} px: one network "
            "reads images of one size. Collect or import one of them again in the other's size."
        )


def require_usable(mixture: Mixture, config: WindowConfig, *, num_workers: int) -> None:
    """Raise an error if a dataset is damaged, or too small to give each worker a batch; no image is decoded.

    Raises:
        ConfigError, DataError: see `schedule.require_batches` and `reader.require_readable`.
    """
    for dataset, windows in zip(mixture.sets, mixture.windows(config), strict=True):
        require_readable(dataset)
        require_batches(dataset, windows, num_workers=num_workers)


def moments(mixture: Mixture, config: WindowConfig) -> dict[str, dict[str, np.ndarray]]:
    """Mean and standard deviation of states and actions of the training episodes, weighted as in batches.

    Returns:
        Feature -> "mean" and "std", as `norm_stats` takes them.
    """
    share = np.array(counts(mixture.weights, config.batch_size)) / config.batch_size
    stats = [stats_of(dataset, split_episodes(dataset, config)[0]) for dataset in mixture.sets]
    return {
        name: _mixed([dataset_stats[name] for dataset_stats in stats], share)
        for name in (STATE, ACTION)
        if name in stats[0]
    }


def _mixed(stats: Sequence[dict[str, np.ndarray]], share: np.ndarray) -> dict[str, np.ndarray]:
    mean_DX, std_DX = (np.stack([dataset_stats[key] for dataset_stats in stats]) for key in ("mean", "std"))
    mean_X = share @ mean_DX
    return {"mean": mean_X, "std": np.sqrt(share @ (std_DX**2 + (mean_DX - mean_X) ** 2))}


def joined(parts: Sequence[Window]) -> Window:
    """Concatenate windows of several datasets; `task_index` refers to each dataset's own tasks."""
    if len(parts) == 1:
        return parts[0]
    arrays: dict[str, Any] = {}
    for name in [field.name for field in fields(Window)]:
        values = [getattr(part, name) for part in parts]
        if name == "goal_row" and values[0] is not None:
            first_D = np.cumsum([0, *(len(part.k) for part in parts)])
            values = [rows + first for rows, first in zip(values, first_D, strict=False)]
        arrays[name] = None if values[0] is None else np.concatenate(values)
    return Window(**arrays)
