"""What a file of tune_configs/ stands for, and what a user reads whose file cannot work. Ray is never started."""

from pathlib import Path

import pytest
import yaml

from tap_ray.errors import ConfigError, DataError
from tap_ray.sweep import plan as sweep_plan
from tap_ray.sweep.axes import Axis, draw
from tap_ray.sweep.plan import points, read, trials
from tests.made_data import write_made_dataset

TUNE_CONFIGS = Path(__file__).parents[2] / "tune_configs"


@pytest.fixture
def write(tmp_path: Path, toy_dataset: Path):
    """Writes a sweep's file on the toy dataset (24 episodes, 32 px)."""

    def to_file(**values) -> Path:
        file = tmp_path / "sweep.yaml"
        paths = {"data": str(toy_dataset), "demos": str(toy_dataset)}
        file.write_text(yaml.safe_dump(paths | values))
        return file

    return to_file


def trials_of(file: Path):
    return trials(read(file), file)


def test_a_grid_is_every_combination_and_scratch_comes_once(write):
    file = write(
        budget={"grid": [0, 20, 24]},
        pretrain={"train": {"steps": {"grid": [10, 20]}}},
        seed={"grid": [0, 1]},
    )
    made = trials_of(file)
    assert [trial.label for trial in made] == [
        "budget 0, steps 0, seed 0",
        "budget 0, steps 0, seed 1",
        *(f"budget {b}, steps {s}, seed {seed}" for b in (20, 24) for s in (10, 20) for seed in (0, 1)),
    ]
    assert [trial.id for trial in made] == [f"{number:03d}" for number in range(10)]
    assert made[0].pretrain is None
    last = made[-1]
    assert last.pretrain is not None
    assert (last.pretrain.windows.num_episodes, last.pretrain.train.steps, last.pretrain.train.seed) == (24, 20, 0)
    assert last.align.train.seed == 1
    assert (last.evaluate.image_size, last.evaluate.robot) == (32, "widowx")


def test_no_stage_1_steps_is_behavior_cloning_too(write):
    made = trials_of(write(budget=20, pretrain={"train": {"steps": {"grid": [0, 10]}}}))
    assert [trial.pretrain is None for trial in made] == [True, False]


def test_budgets_are_nested(write, toy_dataset: Path):
    """A smaller budget's training episodes are among the larger one's, and both hold out the same of those."""
    from tap_ray.dataset.reader import open_dataset
    from tap_ray.dataset.windows import split_episodes

    small, large = (t.pretrain.windows for t in trials_of(write(budget={"grid": [20, 24]})) if t.pretrain)
    (train, held), (all_train, all_held) = (split_episodes(open_dataset(toy_dataset), w) for w in (small, large))
    assert set(train) < set(all_train)
    assert set(held) <= set(all_held)
    assert list(held) == [18]


def test_draws_are_a_function_of_seed_axis_and_number(write):
    file = write(
        samples=3,
        align={
            "train": {"lr": {"loguniform": [1e-4, 1e-2]}, "clip": {"uniform": [0.5, 2]}},
            "align": {"freeze": {"choice": [[], ["vision"]]}},
        },
        seed={"grid": [0, 1]},
    )
    made = trials_of(file)
    assert len(made) == 6
    assert made == trials_of(file)
    for first, second in zip(made[::2], made[1::2], strict=True):  # the seeds of a draw share what was drawn
        assert first.align.train.lr == second.align.train.lr
    rates = {trial.align.train.lr for trial in made}
    assert len(rates) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert all(0.5 <= trial.align.train.clip <= 2 for trial in made)
    assert {trial.align.align.freeze for trial in made} <= {(), ("vision",)}
    axis = Axis(name="align.train.lr", verb="loguniform", values=(1e-4, 1e-2))
    assert made[0].align.train.lr == draw(axis, 0, 0)
    assert draw(axis, 1, 0) != draw(axis, 0, 0)


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("cloning", 4),
        ("play_pays", 15),
        ("play_budget", 12),
        ("play_steps", 4),
        ("smoke", 4),
        ("study", 18),
        ("study_demos", 8),
        ("study_small", 8),
        ("data_budget", 24),
        ("data_budget_small", 8),
        ("alignment_grid", 18),
        ("alignment_search", 24),
    ],
)
def test_the_files_that_we_ship(file: str, number: int):
    path = TUNE_CONFIGS / f"{file}.yaml"
    assert len(points(read(path), path)) == number


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budgets": 3}, r"sweep\.yaml: unknown key 'budgets'\. Did you mean 'budget'\?"),
        ({"align": {"train": {"stepz": 3}}}, r"align: train: unknown key 'stepz'\. Did you mean 'steps'\?"),
        ({"align": {"train": {"lr": {"gird": [1]}}}}, r"align\.train\.lr: expected a value or one verb, .*'grid'\?"),
        ({"align": {"train": {"lr": {"grid": []}}}}, r"align\.train\.lr: grid needs a list of at least one value"),
        ({"seed": {"grid": [0, 0]}}, r"seed: grid has a value twice: \[0, 0\]"),
        (
            {"align": {"train": {"lr": {"uniform": [2, 1]}}}},
            r"uniform needs two bounds, the lower one first; got \[2, 1\]",
        ),
        ({"align": {"train": {"lr": {"loguniform": [0, 1]}}}}, r"the lower one first and above 0; got \[0, 1\]"),
        ({"align": {"train": {"lr": {"uniform": ["a", 1]}}}}, r"uniform: expected numbers, got 'a'"),
        ({"align": {"train": {"lr": {"grid": ["fast"]}}}}, r"align: train: lr: expected float, got 'fast'"),
        ({"align": {"init": "runs/x"}}, r"align: init is set by the sweep"),
        ({"align": 3}, r"align: expected keys and values, got 3"),
        ({"evaluate": {"episodes": {"grid": [1, 2]}}}, "evaluate must have values only"),
        ({"samples": 3}, r"exactly 1 if no axis is sampled; got 3, and 0 of the 0 axes"),
        ({"budget": {"grid": [0, 25]}}, r"budget 25 is larger than the dataset: .* has 24 episodes\. Collect more"),
        ({"budget": 5}, r"budget 5 leaves no episode for validation: every 19-th is held out"),
        ({"budget": "many"}, r"budget: expected a whole number of at least 0, got 'many'"),
        ({"seed": -1}, r"seed: expected a whole number of at least 0, got -1"),
        ({"budget": 20, "align": {"policy": {"num_state": 0}}}, r"trial 000: With --init .*--policy\.num-state\. Omit"),
        ({"align": {"windows": {"num_episodes": 99}}}, r"align\.windows\.num_episodes 99 is larger than the dataset"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(write, values, message):
    with pytest.raises(ConfigError, match=message):
        trials_of(write(**values))


def test_a_scratch_policy_does_not_hide_a_mistake_in_stage_1(write):
    with pytest.raises(ConfigError, match=r"pretrain: unknown key 'trian'\. Did you mean 'train'\?"):
        trials_of(write(budget=0, pretrain={"trian": {}}))


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Cannot read the config file .*nowhere\.yaml"):
        sweep_plan.read(tmp_path / "nowhere.yaml")


def test_a_sweep_whose_arms_use_no_play_needs_none(write, tmp_path: Path, toy_dataset: Path):
    nowhere = str(tmp_path / "nowhere")
    plan = read(write(data=nowhere, arms={"one": {"budget": 0}, "other": {"align": {"train": {"lr": 0.01}}}}))
    assert sweep_plan.data_sets(plan) == [toy_dataset.resolve()]
    assert len(trials_of(write(data=nowhere, seed={"grid": [0, 1]}))) == 2
    with pytest.raises(DataError, match="nowhere"):
        trials_of(write(data=nowhere, budget={"grid": [0, 20]}))
    with_prior = read(write(data=nowhere, arms={"one": {"prior": {}}}))
    assert sweep_plan.data_sets(with_prior) == [(tmp_path / "nowhere").resolve(), toy_dataset.resolve()]


def test_so_many_demonstrations_of_each_task_or_an_error(write, tmp_path: Path):
    """An import may have all demonstrations of one task first; then "ten of each" would be twenty of that one."""
    sentences = ["go left"] * 12 + ["go right"] * 12
    demos = write_made_dataset(tmp_path / "sorted", num_episodes=24, tasks=sentences)
    file = write(demos_per_task=10, demos=str(demos))
    with pytest.raises(
        ConfigError,
        match=r"demos_per_task 10: .* the first 20 demonstrations are not 10 of each of its 2 instructions: "
        r"12 of 'go left', 8 of 'go right'\. Set align.windows.num_episodes instead",
    ):
        trials_of(file)
