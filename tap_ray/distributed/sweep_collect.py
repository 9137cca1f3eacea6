"""Collects the play and the demonstrations that a sweep needs and that do not exist yet."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from tap_ray import runs, storage
from tap_ray.align.objective import BehaviorCloning
from tap_ray.config import from_dict
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import require_same_header
from tap_ray.distributed.connect import connect
from tap_ray.distributed.crops import cut_missing
from tap_ray.errors import ConfigError, DataError, nearest
from tap_ray.evaluate.protocol import Protocol
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.sweep.data import ENOUGH, DatasetFacts, dataset_facts
from tap_ray.sweep.plan import SweepFile, data_sets
from tap_ray.sweep.trial import Trial
from tap_ray.training.validation import names

HeaderOf = Callable[[PlayJobConfig | DemosJobConfig], DatasetHeader]
"""Function from the config of a collection job to the header of the dataset that it makes."""


@dataclass(frozen=True, kw_only=True)
class Collectors:
    """The jobs' functions: config -> dataset."""

    play: Callable[[PlayJobConfig], Path]
    demos: Callable[[DemosJobConfig], Path]


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A dataset that is to be collected, or made longer."""

    config: PlayJobConfig | DemosJobConfig
    have: int
    """Number of episodes that already exist."""

    def __str__(self) -> str:
        """A line for the terminal, e.g. "data/play: 8000 episodes of play (mixed); 2000 episodes are there"."""
        if isinstance(self.config, DemosJobConfig):
            what = "demonstrations of each task"
        else:
            what = f"episodes of play ({self.config.explorer})"
        return f"{self.config.out}: {self.config.episodes} {what}; {self.have} episodes already exist"


def entry_of(plan: SweepFile, path: Path, where: Path | str) -> PlayJobConfig | DemosJobConfig | None:
    """How a dataset of a sweep is collected; None if the sweep's file does not say.

    Raises:
        ConfigError: a key is unknown (the nearest is named), or is filled in by the sweep itself.
    """
    if str(path) not in plan.collect:
        return None
    entry, place = plan.collect[str(path)], f"{where}: collect: {path}"
    for key in ("out", "ray_address"):
        if key in entry:
            raise ConfigError(f"{place}: {key} is set by the sweep. Remove it.")
    cls = DemosJobConfig if path == plan.demos else PlayJobConfig
    return from_dict(cls, {**entry, "out": path}, where=place)


def planned_datasets(plan: SweepFile, header_of: HeaderOf, where: Path | str) -> dict[Path, DatasetFacts]:
    """What the plan needs to know about a sweep's datasets; for those with an entry in `collect`, as they will be after
    collection.

    Raises:
        ConfigError: see `entry_of`.
        DataError: a dataset is missing, and the file does not say how to collect it; or it exists and was collected
            otherwise than its entry says.
    """
    return {path: _planned(plan, path, header_of, where) for path in data_sets(plan, where)}


def _planned(plan: SweepFile, path: Path, header_of: HeaderOf, where: Path | str) -> DatasetFacts:
    config = entry_of(plan, path, where)
    if config is None:
        return dataset_facts(path)
    header = header_of(config)
    if num_episodes(path):
        cure = f"Change its entry under collect in {where}, or name another folder there."
        require_same_header(storage.to_path(path), header, cure)
        return replace(dataset_facts(path), episodes=ENOUGH)
    return DatasetFacts(
        path=path,
        episodes=ENOUGH,
        num_tasks=len(header.plan.get("tasks") or ("play",)),
        robot=header.spec.robot,
        image_size=header.image_size[0],
        cameras=header.spec.cameras,
    )


def num_episodes(path: Path) -> int:
    """Number of episodes of a usable dataset; 0 if there is none, or if its collection was interrupted before the first
    commit."""
    try:
        return len(open_dataset(path)) if (storage.to_path(path) / "meta").is_dir() else 0
    except DataError:
        return 0


def missing(
    plan: SweepFile, trials: Sequence[Trial], have: Mapping[Path, DatasetFacts], where: Path | str
) -> list[Missing]:
    """The datasets that must be collected before the trials, play first. A dataset with enough episodes is never made
    longer; one that is used as a whole has enough when its collection has ended.

    Args:
        plan: the sweep.
        trials: made with `have`.
        have: from `planned_datasets`.
        where: the file, for messages.
    """
    found = []
    for path, facts in have.items():
        config = entry_of(plan, path, where)
        if config is None:
            continue
        demos, there, named = path == plan.demos, num_episodes(path), "episodes" in plan.collect[str(path)]
        needed = [*episodes_needed(trials, path)]
        whole, total = not needed or 0 in needed, max(needed, default=0)
        each = least = -(-total // facts.num_tasks) if demos else total
        if whole and (named or not _ended(path)):
            least = max(each, config.episodes)
        if there < max(least * (facts.num_tasks if demos else 1), 1):
            episodes = max(each, config.episodes) if named or whole else each
            found.append(Missing(config=replace(config, episodes=episodes), have=there))
    return found


def _ended(path: Path) -> bool:
    """Whether the collection of a dataset was not interrupted, as far as its manifest says."""
    manifest = storage.to_path(path) / "manifest.json"
    return not manifest.exists() or runs.read_json(manifest).get("status") == "done"


def episodes_needed(trials: Sequence[Trial], path: Path) -> Iterable[int]:
    """Numbers of episodes of a dataset that the trials need; 0 if one uses as many as there are."""
    for trial in trials:
        if trial.align.demos == path:
            yield trial.align.windows.num_episodes
        yield from (num for _, used, num, _ in trial.play() if used == path)


def collect(sets: Sequence[Missing], collectors: Collectors, ray_address: str | None) -> None:
    """Run the collection jobs; each resumes where it was interrupted."""
    if not sets:
        return
    with connect(ray_address):
        for each in sets:
            print(f"collecting {each}", flush=True)
            config: Any = replace(each.config, ray_address=ray_address)
            main: Callable[[Any], Path] = collectors.demos if isinstance(config, DemosJobConfig) else collectors.play
            main(config)


def cut_crops(trials: Sequence[Trial], ray_address: str | None) -> None:
    """Cut the crops that any trial is trained on, once and before the trials start."""
    needed: list[Path] = []
    for trial in trials:
        if trial.pretrain and trial.pretrain.objective.next_object:
            needed += trial.pretrain.sources()[0]
        needed += trial.align.play_sources()[0]
        if trial.align.align.weights.need_crops:
            needed.append(trial.align.demos)
    cut_missing([open_dataset(path) for path in dict.fromkeys(needed)], ray_address)


def require_metric(plan: SweepFile, where: Path) -> None:
    """Raise ConfigError if trials would be stopped by a metric that no alignment on these demonstrations has."""
    if not num_episodes(plan.demos):
        return  # they are still to be collected
    known = names(BehaviorCloning.name, open_dataset(plan.demos).spec)
    if plan.asha and plan.asha.metric not in known:
        raise ConfigError(f"{where}: asha: unknown metric {plan.asha.metric!r}. {nearest(plan.asha.metric, known)}")


def require_robot(plan: SweepFile, have: Mapping[Path, DatasetFacts], protocol: Protocol, where: Path) -> None:
    """Raise ConfigError if the demonstrations are of another robot than the one that trials are evaluated with."""
    robot = have[plan.demos].robot
    if robot != protocol.robot:
        raise ConfigError(
            f"{where}: {plan.demos} has demonstrations of {robot!r}, and evaluate has the robot {protocol.robot!r}. "
            "Give the env under evaluate that they were collected in."
        )
