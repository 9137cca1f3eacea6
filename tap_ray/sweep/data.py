"""Provides the facts about datasets that a sweep's plan needs, whether they exist or will be collected."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence

from tap_ray.dataset.action_chunks import ActionChunkConfig
from tap_ray.dataset.mixture import require_alike, require_once
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import ConfigError
from tap_ray.specs import ONE_CAMERA

ENOUGH = sys.maxsize
"""Number of episodes that stands for "as many as the sweep needs", for a dataset that is still to be collected."""


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a sweep's plan needs to know about one dataset."""

    path: Path
    episodes: int
    num_tasks: int
    """Number of tasks whose demonstrations alternate."""
    robot: str
    image_size: int
    """Side of the images, px."""
    cameras: tuple[str, ...] = ONE_CAMERA
    dataset: DatasetInfo | None = None
    """None: still to be collected."""


def dataset_facts(path: Path) -> DatasetFacts:
    """Read what is known about an existing dataset.

    Raises:
        DataError: there is no dataset, or it cannot be used.
    """
    dataset = open_dataset(path)
    return DatasetFacts(
        path=path,
        episodes=len(dataset),
        num_tasks=len(dataset.header.plan.get("tasks") or dataset.tasks),
        robot=dataset.spec.robot,
        image_size=dataset.header.image_size[0],
        cameras=dataset.spec.cameras,
        dataset=dataset,
    )


def require_mixture(sets: Sequence[DatasetFacts], where: Path | str) -> None:
    """Raise unless one network can learn from all of these datasets; of one to be collected as far as that is known.

    Raises:
        ConfigError: one will be of another robot or have other images than the first; `where` is the sweep's file.
        DataError, SpecError: see `mixture.require_alike`.
    """
    require_once([each.path for each in sets])
    require_alike([each.dataset for each in sets if each.dataset])
    for other in sets[1:]:
        for name in ("robot", "image_size", "cameras"):
            mine, first = getattr(other, name), getattr(sets[0], name)
            if mine != first:
                raise ConfigError(
                    f"{where}: {other.path} has {name} {mine}, and {sets[0].path} has {first}: one network learns from "
                    "play of one robot with the same images. Change one of them under collect, or leave it out."
                )


def require_other_robots(sets: Sequence[DatasetFacts], where: Path | str) -> None:
    """Raise ConfigError where two datasets of a motion prior are of one robot."""
    for number, other in enumerate(sets):
        for before in sets[:number]:
            if other.robot == before.robot:
                raise ConfigError(
                    f"{where}: a motion prior reads one dataset of each robot, and both {before.path} and {other.path} "
                    f"are of {other.robot!r}. Give arms with a prior a `data` of their own."
                )


def require_episodes(
    requests: Iterable[tuple[str, int, WindowConfig | ActionChunkConfig, DatasetFacts]], where: Path | str
) -> None:
    """Raise an error unless each dataset has the requested number of episodes, and at least one of them is held out.

    Args:
        requests: for each request the key of the file, the number of episodes (0: all), the windows, and the dataset.
        where: the sweep's file, for messages.

    Raises:
        ConfigError: names the key that requests too many or too few episodes.
    """
    for name, num, windows, data in requests:
        if num > data.episodes:
            raise ConfigError(
                f"{where}: {name} {num} is larger than the dataset: {data.path} has {data.episodes} episodes. Collect "
                "more (run the same command with a larger --episodes), or request fewer."
            )
        if windows.holdout_every and (num or data.episodes) < windows.holdout_every:
            raise ConfigError(
                f"{where}: {name} {num} leaves no episode for validation: every {windows.holdout_every}-th is held "
                "out. Request more, or set windows.holdout_every lower."
            )


def require_alternating(demos: DatasetFacts, each: int, where: Path | str) -> None:
    """Raise ConfigError unless the first demonstrations are `each` of every task: those of jobs.collect_demos
    alternate, those of an import have any order, and each of its instructions counts as a task."""
    if demos.dataset is None or demos.dataset.header.plan.get("tasks"):
        return
    if len(demos.dataset) < each * demos.num_tasks:  # too few, which is an error of its own, or not yet all there
        return
    num = Counter(list(demos.dataset.episodes["instruction"][: each * demos.num_tasks]))
    if each and set(num.values()) != {each}:
        found = ", ".join(f"{count} of {sentence!r}" for sentence, count in list(num.items())[:3])
        raise ConfigError(
            f"{where}: demos_per_task {each}: {demos.path} was not collected by jobs.collect_demos, and the first "
            f"{sum(num.values())} demonstrations are not {each} of each of its {demos.num_tasks} instructions: {found}"
            f"{', ...' * (len(num) > 3)}. Set align.windows.num_episodes instead, the number of all demonstrations."
        )
