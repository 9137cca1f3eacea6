"""One trial of a sweep, and whether its datasets can give what it asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

from tap_ray.dataset.action_chunks import ActionChunkConfig, counts
from tap_ray.dataset.windows import WindowConfig
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.sweep.data import (
    DatasetFacts,
    require_alternating,
    require_episodes,
    require_mixture,
    require_other_robots,
)
from tap_ray.sweep.tables import label


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a sweep: the configs of its stages, without the folders that are known only after running them."""

    id: str
    """Its number, e.g. "007"."""
    values: Mapping[str, Any]
    """By axis."""
    pretrain: PretrainConfig | None
    """None: from scratch."""
    prior: PriorJobConfig | None
    align: AlignJobConfig
    evaluate: EvaluateConfig
    gpu_scenes: bool = False
    """Whether the simulator that it is evaluated in needs a GPU."""

    @property
    def gpus_per_fleet(self) -> float:
        """GPUs that each process of robots reserves in its evaluation."""
        return self.evaluate.gpus_of_fleet(self.gpu_scenes)

    @property
    def least_gpus(self) -> float:
        """GPUs that its evaluation needs to start: of one fleet, and of all processes that compute for the fleets."""
        return self.gpus_per_fleet + self.evaluate.inference.actors * self.evaluate.inference.gpus

    @property
    def label(self) -> str:
        """A short text, e.g. "budget 400, seed 1"."""
        return label(self.values)

    @property
    def with_play(self) -> bool:
        """Whether it is trained on play at all."""
        return any(True for _ in self.play())

    def play(self) -> Iterator[tuple[str, Path, int, WindowConfig | ActionChunkConfig]]:
        """Each use of a dataset of play: the key of the file that says how many of its first episodes (0: all), the
        dataset, that number, and the windows."""
        if self.pretrain:
            for path in self.pretrain.sources()[0]:
                yield "budget", path, self.pretrain.windows.num_episodes, self.pretrain.windows
        for path in self.align.play_sources()[0]:
            yield "budget", path, self.align.align.play_episodes, self.align.windows
        if self.prior:
            for path in self.prior.sources()[0]:
                yield "prior.windows.num_episodes", path, self.prior.windows.num_episodes, self.prior.windows


def require_data(trial: Trial, demos_per_task: int, have: Mapping[Path, DatasetFacts], where: Path | str) -> None:
    """Raise unless each dataset has as many episodes as are asked for, and mixtures are of sets that can be mixed.

    Args:
        trial: of the sweep.
        demos_per_task: demonstrations that were asked for; 0: `align.windows.num_episodes` says how many of all tasks.
        have: facts of the datasets by path.
        where: the sweep's file, for messages.

    Raises:
        ConfigError, DataError, SpecError: name the key or the dataset that cannot be.
    """
    for paths, weights, num_windows in _mixtures(trial):
        require_mixture([have[path] for path in paths], where)
        counts(weights, num_windows)
    if trial.prior:
        require_other_robots([have[path] for path in trial.prior.sources()[0]], where)
    require_episodes(_requests(trial, demos_per_task, have), where)
    require_alternating(have[trial.align.demos], demos_per_task, where)


def play_used(trials: Iterable[Trial]) -> dict[Path, int]:
    """Dataset of play -> how many of its first episodes these trials use; 0: one of them uses all."""
    used: dict[Path, list[int]] = {}
    for trial in trials:
        for _, path, num, _ in trial.play():
            used.setdefault(path, []).append(num)
    return {path: max(nums) if all(nums) else 0 for path, nums in used.items()}


def _mixtures(trial: Trial) -> Iterator[tuple[Sequence[Path], Sequence[float], int]]:
    """Datasets that one network learns from, their weights, and the windows of a batch."""
    if trial.pretrain:
        yield *trial.pretrain.sources(), trial.pretrain.train.batch_size
    if trial.align.play:
        yield *trial.align.play_sources(), trial.align.align.play_batch


def _requests(
    trial: Trial, each: int, have: Mapping[Path, DatasetFacts]
) -> Iterator[tuple[str, int, WindowConfig | ActionChunkConfig, DatasetFacts]]:
    """The key that asks, for how many episodes, as which windows, of which dataset."""
    align, demos = trial.align, have[trial.align.demos]
    key = f"demos_per_task {each} of {demos.num_tasks} tasks =" if each else "align.windows.num_episodes"
    yield key, align.windows.num_episodes, align.windows, demos
    for key, path, num, windows in trial.play():
        if num or key == "budget":  # a prior on all episodes asks for no number of them
            yield key, num, windows, have[path]
