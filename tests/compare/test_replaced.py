import json
from pathlib import Path

import pytest

from tap_ray.compare import tables
from tap_ray.compare.reading import read_runs
from tap_ray.compare.report import write
from tests.compare.evaluated_runs import TASKS, make_result, make_training

WORTH = {"scratch_10": "e...", "scratch_40": "eee.", "tap": "ee.."}
"""Avg-All 25, 75 and 50 %: half way from 10 to 40 demonstrations on a logarithmic scale, which is 20."""


def make_policy(
    folder: Path, name: str, *, demos: int, init: bool, letters: str, in_config: bool = True, **train: int
) -> Path:
    """A policy's training and its evaluation; its demonstrations are in its config or in its dataset."""
    run = make_training(
        folder / f"{name}-run", "bc", init=make_training(folder / f"{name}-1", "play") if init else None
    )
    manifest = json.loads((run / "manifest.json").read_text())
    data = folder / f"demos-{demos}"
    (data / "meta").mkdir(parents=True, exist_ok=True)
    (data / "meta" / "info.json").write_text(json.dumps({"total_episodes": demos}))
    manifest["parents"]["demos"] = {"path": str(data), "hash": "2"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "config.json").write_text(
        json.dumps({"windows": {"num_episodes": demos if in_config else 0}, "train": train})
    )
    return make_result(folder / name, dict.fromkeys(TASKS, letters), run=run)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_policy(tmp_path, "scratch_10", demos=10, init=False, letters=WORTH["scratch_10"]),
        make_policy(tmp_path, "scratch_40", demos=40, init=False, letters=WORTH["scratch_40"], in_config=False),
        make_policy(tmp_path, "tap", demos=10, init=True, letters=WORTH["tap"]),
    ]


def test_how_many_demonstrations_play_replaces_by_hand(runs: list[Path]):
    results, _ = read_runs(runs)
    assert tables.cost_headings(results)[-1] == "what play replaces"
    assert [row[-1] for row in tables.cost_rows(results)] == ["", "", "20 demonstrations instead of 10"]
    text = tables.text_table(results)
    assert text.endswith("what play replaces (Avg-All, standard)\ntap: 20 demonstrations instead of 10")


def test_the_best_setting_counts_as_the_mean_over_its_seeds(runs: list[Path], tmp_path: Path):
    """With 40 demonstrations 75 %, or after twice the steps 100 and 50 % with two seeds: 75 % again."""
    for steps, seed, letters in ((2000, 0, "eeee"), (2000, 1, "ee.."), (500, 0, "....")):
        name = f"scratch_{steps}_{seed}"
        train = {"steps": steps, "seed": seed}
        runs.append(make_policy(tmp_path, name, demos=40, init=False, letters=letters, **train))
    results, _ = read_runs(runs)
    assert [row[-1] for row in tables.cost_rows(results) if row[-1]] == ["20 demonstrations instead of 10"]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("config.json", '"train"', '"history": 10, "train"'),
        ("config.json", '"train"', '"workers": {"num_workers": 4}, "train"'),
        ("config.json", '"train"', '"workers": 4, "train"'),  # as in older runs
        ("manifest.json", '"hash": "2"', '"hash": "3"'),  # of the demonstrations
    ],
)
def test_another_setting_is_no_seed(file: str, before: str, after: str, runs: list[Path], tmp_path: Path):
    """With 40 demonstrations 75 %, and 0 % in another setting, which does not count: their mean would be 37.5 %."""
    runs.append(make_policy(tmp_path, "other", demos=40, init=False, letters="....", in_config=False))
    changed = tmp_path / "other-run" / file
    changed.write_text(changed.read_text().replace(before, after))
    results, _ = read_runs(runs)
    assert [row[-1] for row in tables.cost_rows(results) if row[-1]] == ["20 demonstrations instead of 10"]


@pytest.mark.parametrize(
    ("letters", "gain"),
    [
        ("eeee", "more than 40 demonstrations instead of 10"),
        ("....", "at most 10 demonstrations instead of 10"),
    ],
)
def test_beyond_what_was_trained_from_scratch(letters: str, gain: str, runs: list[Path], tmp_path: Path):
    results, _ = read_runs([*runs[:2], make_policy(tmp_path, "other", demos=10, init=True, letters=letters)])
    assert tables.cost_rows(results)[-1][-1] == gain


def test_one_number_of_demonstrations_says_nothing(runs: list[Path], tmp_path: Path):
    results, _ = read_runs([runs[0], runs[2]])
    assert "what play replaces" not in tables.cost_headings(results)
    assert "what play replaces" not in tables.text_table(results)
    page = write([runs[0], runs[2]], tmp_path / "page").read_text()
    assert "what play replaces" not in page
    assert "20 demonstrations instead of 10" in write(runs, tmp_path / "all").read_text()
