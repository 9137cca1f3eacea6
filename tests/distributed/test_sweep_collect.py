"""Which datasets a sweep collects before its trials, and how much of them; nothing is collected here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import collect_play, sweep
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.sweep_collect import Missing, missing, num_episodes, planned_datasets
from tap_ray.errors import ConfigError, DataError
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.sweep import plan as sweep_plan
from tap_ray.sweep.plan import SweepFile


def header_of(config: PlayJobConfig | DemosJobConfig) -> DatasetHeader:
    """The jobs' own, but what exists was collected just so."""
    assert config.out
    return open_dataset(config.out).header if num_episodes(config.out) else sweep.dataset_header(config)


@pytest.fixture
def plan_of(tmp_path: Path):
    """What a file in `tmp_path` would collect; play and demonstrations lie in `tmp_path` unless it says otherwise."""

    def of(*data: Path, demos: Path | None = None, **values: Any) -> list[Missing]:
        file = tmp_path / "study.yaml"
        paths = {"data": str(tmp_path / "play"), "demos": str(tmp_path / "demos")}
        file.write_text(yaml.safe_dump(paths | values, sort_keys=False))
        plan = sweep_plan.read(file, data=[str(path) for path in data], demos=demos)
        have = planned_datasets(plan, header_of, file)
        return missing(plan, sweep_plan.trials(plan, file, have), have, file)

    return of


def test_what_is_not_there_is_collected_as_far_as_it_is_asked_for(plan_of, tmp_path: Path):
    play, demos = plan_of(
        budget={"grid": [0, 100, 400]},
        demos_per_task={"grid": [5, 10]},
        collect={
            str(tmp_path / "play"): {"explorer": "contact", "robot_mask": True},
            str(tmp_path / "demos"): {"robot_mask": True},
        },
    )
    assert play.config == PlayJobConfig(explorer="contact", robot_mask=True, episodes=400, out=tmp_path / "play")
    assert demos.config == DemosJobConfig(robot_mask=True, episodes=10, out=tmp_path / "demos")
    assert str(play) == f"{tmp_path}/play: 400 episodes of play (contact); 0 episodes already exist"
    assert str(demos) == f"{tmp_path}/demos: 10 demonstrations of each task; 0 episodes already exist"


def test_a_data_set_with_enough_episodes_stays_as_it_is(plan_of, tmp_path: Path, toy_dataset: Path):
    """24 episodes are there; making them more would be another dataset, on which everything is trained again."""
    collect = {str(tmp_path / "demos"): {}, str(toy_dataset): {"episodes": 500}}
    [only] = plan_of(toy_dataset, budget=24, demos_per_task=4, collect=collect)
    assert only.config.out == tmp_path / "demos"
    play, _ = plan_of(toy_dataset, budget=25, demos_per_task=4, collect=collect)
    assert (play.config.episodes, play.have) == (500, 24)


def test_a_dataset_that_was_collected_otherwise_is_none_of_the_sweeps(tmp_path: Path):
    entry = {"explorer": "uniform", "max_steps": 3, "image_size": 16}
    collected = PlayJobConfig(**entry)
    with DatasetWriter(tmp_path, sweep.dataset_header(collected)) as writer:
        [played] = collect_play.fleet(collect_play.planned(collected)[0], 1, None).run([0])
        assert played.episode
        writer.append(played.episode)
    demos = tmp_path / "demos"
    plan = SweepFile(data=(str(tmp_path),), demos=demos, budget=1, collect={str(tmp_path): entry, str(demos): {}})
    assert planned_datasets(plan, sweep.dataset_header, "x.yaml")[tmp_path].dataset
    other = replace(plan, collect={**plan.collect, str(tmp_path): {**entry, "explorer": "waypoint", "seed": 7}})
    with pytest.raises(DataError) as refused:
        planned_datasets(other, sweep.dataset_header, "x.yaml")
    text = str(refused.value)
    assert text.startswith(f"{tmp_path} was made with another plan, spec or camera:\n")
    assert "'uniform'" in text
    assert "'waypoint'" in text
    assert text.endswith("Change its entry under collect in x.yaml, or name another folder there.")


@pytest.mark.parametrize(("status", "entry", "episodes"), [
    ("done", {}, 0), ("running", {}, 200), ("done", {"episodes": 9}, 9), ("running", {"episodes": 8}, 0),
])  # fmt: skip
def test_an_interrupted_collection_is_not_all_there_is(
    plan_of, tmp_path: Path, toy_dataset: Path, status: str, entry: dict[str, int], episodes: int
):
    """Eight demonstrations of each task are there, and the sweep uses all of them."""
    demos = shutil.copytree(toy_dataset, tmp_path / "interrupted")
    (demos / "manifest.json").write_text(json.dumps({"status": status}))
    found = plan_of(toy_dataset, demos=demos, budget=20, collect={str(demos): entry})
    assert [(each.config.episodes, each.have) for each in found] == ([(episodes, 24)] if episodes else [])


def test_demonstrations_are_counted_a_task(plan_of, tmp_path: Path, toy_dataset: Path):
    """24 of three tasks are 8 of each."""
    collect = {str(tmp_path / "demos"): {}}
    assert plan_of(toy_dataset, demos=toy_dataset, demos_per_task=8, budget=20, collect=collect) == []
    [more] = plan_of(toy_dataset, demos=toy_dataset, demos_per_task=9, budget=20, collect=collect)
    assert (more.config.out, more.config.episodes) == (toy_dataset, 9)
    [more] = plan_of(
        toy_dataset, demos=toy_dataset, align={"windows": {"num_episodes": 25}}, budget=20, collect=collect
    )
    assert more.config.episodes == 9


def test_play_of_an_arm_and_play_beside_demonstrations(plan_of, tmp_path: Path, toy_dataset: Path):
    other = str(tmp_path / "other")
    arms = {"scratch": {"budget": 0}, "other": {"data": other, "budget": 60, "cotrain": True}}
    [only] = plan_of(toy_dataset, demos=toy_dataset, arms=arms, collect={other: {"explorer": "curious"}})
    assert isinstance(only.config, PlayJobConfig)
    assert (str(only.config.out), only.config.episodes, only.config.explorer) == (other, 60, "curious")


def test_each_dataset_of_a_mixture_is_collected(plan_of, tmp_path: Path, toy_dataset: Path):
    """As far as the budget goes, each as its entry says; what is known of their scenes has to fit together."""
    near, far = (str(tmp_path / name) for name in ("near", "far"))
    entries: dict[str, Any] = {near: {"explorer": "contact"}, far: {"explorer": "curious"}}
    values = {"data": [near, f"{far}:0.5"], "budget": {"grid": [0, 60]}, "collect": entries}
    first, second = plan_of(demos=toy_dataset, **values)
    assert [(str(each.config.out), each.config.explorer, each.config.episodes) for each in (first, second)] == [
        (near, "contact", 60),
        (far, "curious", 60),
    ]
    entries[far] = {"robot": "panda"}
    with pytest.raises(ConfigError, match=r"far has robot panda, and .*near has widowx: one network learns from play"):
        plan_of(demos=toy_dataset, **values)


def test_without_an_entry_the_command_is_named(plan_of, tmp_path: Path, toy_dataset: Path):
    with pytest.raises(
        DataError, match=r"There is no dataset at .*play: .* Collect one with `python -m jobs.collect_play"
    ):
        plan_of(demos=toy_dataset, budget=20)
    with pytest.raises(
        ConfigError, match=r"budget 25 is larger than the dataset: .* Collect more \(run the same command"
    ):
        plan_of(toy_dataset, demos=toy_dataset, budget=25)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"explore": "contact"}, r"collect: .*play: unknown key 'explore'\. Did you mean 'explorer'\?"),
        ({"out": "x"}, r"collect: .*play: out is set by the sweep\. Remove it"),
    ],
)
def test_mistakes_in_an_entry(plan_of, tmp_path: Path, entry: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        plan_of(budget=20, collect={str(tmp_path / "play"): entry, str(tmp_path / "demos"): {}})


def test_a_collection_that_was_cut_off_before_its_first_episode_counts_as_none(tmp_path: Path):
    (tmp_path / "meta").mkdir()
    assert num_episodes(tmp_path) == 0
