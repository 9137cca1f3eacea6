"""Arms, demonstrations a task and whose seed Stage 1 has: what a study's file stands for. Ray is never started."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tap_ray.distributed.sweep_job import play_parents
from tap_ray.errors import ConfigError, DataError, SpecError
from tap_ray.sweep.arms import merged
from tap_ray.sweep.plan import read, trials
from tap_ray.sweep.trial import Trial, play_used
from tests.distributed import toy_player
from tests.made_data import write_made_dataset

ARMS: dict[str, Any] = {
    "scratch": {"budget": 0},
    "twice": {"budget": 0, "align": {"train": {"steps": 200}}},
    "inverse": {"pretrain": {"objective": {"next_object": 0, "reach": 0, "inverse_dynamics": 1}}},
    "next_object": None,
    "cotrain": {"cotrain": True, "align": {"align": {"play_batch": 8}}},
    "prior": {"prior": {"prior": {"chunk": 8}}},
}
FILE: dict[str, Any] = {
    "budget": 20,
    "pretrain": {"train": {"steps": 50, "lr": 1e-3}},
    "prior": {"train": {"steps": 50}},
    "align": {"train": {"steps": 100, "batch_size": 16}},
}
HELD: dict[str, Any] = {"pretrain": {"windows": {"holdout_every": 5}}, "align": {"windows": {"holdout_every": 5}}}
"""For datasets of a few episodes."""


@pytest.fixture
def trials_of(tmp_path: Path, toy_dataset: Path):
    """The trials of a file on the toy dataset: 24 episodes, three tasks in turn."""

    def of(**values: Any) -> list[Trial]:
        file = tmp_path / "study.yaml"
        paths = {"data": str(toy_dataset), "demos": str(toy_dataset)}
        file.write_text(yaml.safe_dump(paths | FILE | values, sort_keys=False))
        return trials(read(file), file)

    return of


def test_an_arm_is_the_file_with_its_own_values(trials_of, toy_dataset: Path):
    scratch, twice, inverse, plain, cotrain, prior = trials_of(arms=ARMS)
    assert [t.values["arm"] for t in (scratch, twice, inverse, plain, cotrain, prior)] == list(ARMS)
    assert (scratch.pretrain, twice.pretrain) == (None, None)
    assert (scratch.align.train.steps, twice.align.train.steps, twice.align.train.batch_size) == (100, 200, 16)
    assert inverse.pretrain is not None
    assert plain.pretrain is not None
    assert (inverse.pretrain.objective.inverse_dynamics, plain.pretrain.objective.inverse_dynamics) == (1.0, 0.0)
    assert inverse.pretrain.train == plain.pretrain.train
    assert (plain.align.play, cotrain.align.play) == ((), (str(toy_dataset),))
    assert (cotrain.align.align.play_episodes, cotrain.align.align.play_batch) == (20, 8)
    assert cotrain.align.play_windows().num_episodes == 20
    assert cotrain.pretrain == plain.pretrain, "one Stage 1 for both"
    assert [trial.prior is not None for trial in (scratch, twice, inverse, plain, cotrain, prior)] == [False] * 5 + [
        True
    ]
    trials = (scratch, twice, inverse, plain, cotrain, prior)
    assert [trial.with_play for trial in trials] == [False, False, True, True, True, True]
    assert prior.prior is not None
    assert (prior.prior.prior.chunk, prior.prior.train.steps) == (8, 50)


def test_a_motion_prior_has_the_budget_of_its_trial(trials_of):
    budgets = {"budget": {"grid": [20, 24]}}
    for more, nums in (({}, [20, 24]), ({"windows": {"num_episodes": 22}}, [22, 22])):
        made = trials_of(**budgets, arms={"prior": {"prior": {"prior": {"chunk": 8}, **more}}})
        assert [trial.prior.windows.num_episodes for trial in made if trial.prior] == nums


def test_a_mixture_of_play_has_the_budget_of_each(trials_of, toy_dataset: Path, tmp_path: Path):
    """The file's for both stages, an arm's own in its place; the share of one dataset alone is everything."""
    shutil.copytree(toy_dataset, tmp_path / "copy")
    mixed, names = [str(toy_dataset), f"{tmp_path}/copy:0.5"], (f"{toy_dataset}:1.0", f"{tmp_path}/copy:0.5")
    arms = {"both": {"cotrain": True}, "one": {"data": f"{tmp_path}/copy:3", "cotrain": True}}
    both, one = trials_of(data=mixed, arms=arms)
    assert both.pretrain is not None
    assert one.pretrain is not None
    assert (both.pretrain.data, both.align.play) == (names, names)
    assert (one.pretrain.data, one.align.play) == ((f"{tmp_path}/copy",),) * 2
    assert both.pretrain.parents() == {"data_0": toy_dataset, "data_1": tmp_path / "copy"}
    assert both.align.play_parents() == {"play_0": toy_dataset, "play_1": tmp_path / "copy"}
    assert (both.pretrain.windows.num_episodes, both.align.play_windows().num_episodes) == (20, 20)


def test_how_many_episodes_of_play_a_sweep_uses(trials_of, toy_dataset: Path, tmp_path: Path):
    """The most that any trial uses, so that the dataset may grow beyond; all where one trial uses all of them."""
    copy = Path(shutil.copytree(toy_dataset, tmp_path / "copy"))
    arms = {"first": {"budget": 20}, "second": {"budget": 21, "cotrain": True}, "scratch": {"budget": 0}}
    assert play_used(trials_of(arms=arms)) == {toy_dataset: 21}
    assert play_used(trials_of(arms={**arms, "other": {"data": str(copy)}})) == {toy_dataset: 21, copy: 20}
    assert play_used(trials_of(arms={**arms, "prior": {"budget": 0, "prior": {}}})) == {toy_dataset: 0}
    assert play_used(trials_of(arms={"scratch": {"budget": 0}})) == {}


def test_what_a_sweep_is_made_from(tmp_path: Path, toy_dataset: Path):
    """Its own play if an arm reads it, and once what arms read in its place."""
    file = tmp_path / "study.yaml"
    copy, demos = (Path(shutil.copytree(toy_dataset, tmp_path / name)) for name in ("copy", "demos"))

    def parents(arms: dict[str, Any]) -> dict[str, Path]:
        paths = {"data": str(toy_dataset), "demos": str(demos)}
        file.write_text(yaml.safe_dump(paths | FILE | {"arms": arms}))
        plan = read(file)
        return play_parents(plan, trials(plan, file))

    other = {"data": str(copy)}
    assert parents({"scratch": {"budget": 0}}) == {}
    assert parents({"plain": None}) == {"data": toy_dataset}
    assert parents({"plain": None, "one": other, "two": other | {"cotrain": True}}) == {
        "data": toy_dataset,
        "other_data": copy,
    }
    assert parents({"one": other}) == {"other_data": copy}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"data": ["{toy}", "{small}"], "budget": 20}, ConfigError, r"budget 20 is larger than the dataset: .*small "),
        ({"data": ["{toy}", "{square}"]}, SpecError, r"robot: dataset .*square has 'square', dataset .*play has"),
        ({"data": ["{toy}", "{toy}:2"]}, DataError, r"play is named twice\. Name it once: its weight"),
        ({"data": ["{toy}", "{small}:0.001"], "budget": 5, **HELD}, ConfigError, r"dataset of weight 0\.001 gets no"),
        ({"data": ["{toy}", "{small}"], "arms": {"p": {"prior": {}}}, "budget": 5, **HELD}, ConfigError,
         r"a motion prior reads one dataset of each robot, and both .*play and .*small are of 'widowx'\. Give arms"),
        ({"data": []}, ConfigError, r"data: expected at least one dataset of play\. Omit the key if budget is 0"),
        ({"data": ["{toy}:much"]}, ConfigError, r"got '.*play:much', where the weight 'much' of the path .*is not a n"),
    ],
)  # fmt: skip
def test_a_mixture_that_cannot_be(trials_of, toy_dataset: Path, tmp_path: Path, values, error, message):
    places = {"toy": toy_dataset, "small": tmp_path / "small", "square": tmp_path / "square"}
    toy_player.robots().write_dataset(places["small"], 6)
    write_made_dataset(places["square"], num_episodes=21, tasks=("play",))
    data = [text.format(**places) for text in values["data"]]
    with pytest.raises(error, match=message):
        trials_of(**{"prior": None, **values, "data": data})


def test_scratch_comes_once_whatever_the_budget(trials_of):
    two = {name: ARMS[name] for name in ("scratch", "next_object")}
    made = trials_of(arms=two, budget={"grid": [20, 24]}, seed={"grid": [0, 1]})
    assert [trial.label for trial in made] == [
        "arm scratch, budget 0, seed 0",
        "arm scratch, budget 0, seed 1",
        *(f"arm next_object, budget {budget}, seed {seed}" for budget in (20, 24) for seed in (0, 1)),
    ]
    assert [trial.id for trial in made] == [f"{number:03d}" for number in range(6)]


def test_what_an_arm_sets_wins_over_what_the_file_varies(trials_of):
    arms = {"own": {"align": {"train": {"lr": 0.5}}, "budget": 24}, "files": {}}
    lr = {"train": {"steps": 100, "lr": {"grid": [0.1, 0.2]}}}
    made = trials_of(arms=arms, align=lr, budget={"grid": [20, 22]})
    assert [tuple(t.values.values()) for t in made] == [
        ("own", 24, 0.5),
        *(("files", budget, rate) for budget in (20, 22) for rate in (0.1, 0.2)),
    ]


def test_demonstrations_of_a_task_are_counted_in_tasks(trials_of):
    made = trials_of(demos_per_task={"grid": [7, 8]}, arm="next_object", arms=ARMS)
    assert [trial.align.windows.num_episodes for trial in made] == [21, 24]
    assert [trial.label for trial in made] == ["demos_per_task 7", "demos_per_task 8"]


def test_play_beside_demonstrations_without_stage_1(trials_of):
    alone = {"cotrain": True, "pretrain": {"train": {"steps": 0}}}
    made = trials_of(arms={"alone": alone}, budget={"grid": [0, 20]})
    assert [(trial.values["budget"], trial.pretrain, bool(trial.align.play)) for trial in made] == [
        (0, None, False),
        (20, None, True),
    ]


def test_whose_seed_stage_1_has(trials_of):
    """Its own, and one for all; or the trial's, so that each seed is a replication of the whole."""

    def seeds(**more: Any) -> list[tuple[int, int]]:
        made = trials_of(seed={"grid": [3, 4]}, prior=None, **more)
        return [(trial.pretrain.train.seed, trial.align.train.seed) for trial in made]

    assert seeds() == [(0, 3), (0, 4)]
    assert seeds(pretrain_seed="trial") == [(3, 3), (4, 4)]


def test_a_value_replaces_a_verb_and_keys_below_keys_are_merged():
    base = {"train": {"lr": {"grid": [1, 2]}, "steps": 5}, "windows": {"horizon": 4}}
    assert merged(base, {"train": {"lr": 3}}) == {"train": {"lr": 3, "steps": 5}, "windows": {"horizon": 4}}
    assert base["train"]["lr"] == {"grid": [1, 2]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": ARMS, "arm": "scrach"}, r"arm: no arm is called 'scrach'\. Did you mean 'scratch'\?"),
        ({"arms": ARMS, "arm": {"grid": ["twise"]}}, r"no arm is called 'twise'\. Did you mean 'twice'\?"),
        ({"arm": "scratch"}, r"no arm is called 'scratch'\. The file has no `arms`\."),
        ({"arms": {"a": {"budgets": 3}}}, r"arms: a: unknown key 'budgets'\. Did you mean 'budget'\?"),
        ({"arms": {"a": {"align": {"trian": {}}}}}, r"a: align: unknown key 'trian'\. Did you mean 'train'\?"),
        ({"arms": {"a": {"align": 3}}}, r"arms: a: align: expected keys and values, got 3"),
        ({"arms": ["a"]}, r"arms: expected the name of each arm with the values that it changes; got \['a'\]"),
        ({"arms": {"a": {"align": {"train": {"lr": {"grid": [1]}}}}}}, r"train: lr: an arm holds values, not grid"),
        ({"arms": {"a": {"align": {"play": "data/x"}}}}, r"arms: a: align: play is set by the sweep"),
        ({"arms": {"a": {"budget": -1}}}, r"arms: a: budget must be at least 0; got -1."),
        ({"arms": {"a": {"budget": 0, "cotrain": True}}}, r"a: cotrain: true trains on play, and budget: 0 means"),
        ({"arms": {"a": {"budget": 99}}}, r"budget 99 is larger than the dataset"),
        ({"demos_per_task": 9}, r"demos_per_task 9 of 3 tasks = 27 is larger than the dataset: .* has 24 episodes"),
        (
            {"demos_per_task": 8, "align": {"windows": {"num_episodes": 24}}},
            r"demos_per_task and align\.windows\.num_episodes set the same value",
        ),
        ({"pretrain_seed": "mine"}, r"pretrain_seed: 'mine' is not one of \['own', 'trial'\]"),
        ({"collect": {"data/nowhere": {}}}, r"collect: data/nowhere is not a dataset of this sweep\."),
        ({"collect": 3}, r"collect: expected each dataset with what to collect into it; got 3"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(trials_of, values, message):
    with pytest.raises(ConfigError, match=message):
        trials_of(**values)
