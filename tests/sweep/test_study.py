"""What a study found, from evaluation folders laid out by hand: its numbers, and the files to keep."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tap_ray.errors import DataError
from tap_ray.sweep import study_page, study_report
from tap_ray.sweep.study import Outcomes, differences, evaluations, outcomes, replaced
from tap_ray.sweep.study_report import About
from tap_ray.sweep.tables import TrialRow
from tests.compare.evaluated_runs import TASKS, make_protocol, make_result

SPOON, PUMPKIN = TASKS
LAID_OUT = {
    ("scratch", 0, 5): ("e...", "...."),
    ("scratch", 0, 20): ("ee..", "e..."),
    ("next_object", 100, 5): ("ee..", "...."),
    ("next_object", 100, 20): ("eeee", "eeee"),
}
"""(arm, budget, demonstrations) -> outcomes of the two tasks, for both seeds. Of 8 cells: 1, 3, 2 and 8 succeed."""


def trial(folder: Path, number: int, values: dict, spoon: str, pumpkin: str, **more) -> TrialRow:
    result = make_result(folder / f"{number:03d}", {SPOON: spoon, PUMPKIN: pumpkin}, **more)
    manifest = {"job": "evaluate", "hash": "1", "status": "done", "git": "abc", "machine": "x86_64, 2 cores"}
    (result / "manifest.json").write_text(json.dumps(manifest))
    summary = json.loads((result / "results.json").read_text())
    return TrialRow(
        id=f"{number:03d}",
        values=values,
        state="done",
        seconds={"pretrain": 30.0, "align": 60.04},
        runs={"evaluate": str(result), "pretrain": f"runs/{values['arm']}"},
        stage_1={"play/r2_mean": 0.625, "play/val_loss": 0.1} if values["arm"] != "scratch" else {},
        result={key: summary[key] for key in ("avg_partial", "avg_entire", "avg_all")},
    )


@pytest.fixture
def rows(tmp_path: Path) -> list[TrialRow]:
    points = [(values, letters, seed) for values, letters in LAID_OUT.items() for seed in (0, 1)]
    return [
        trial(tmp_path, number, {"arm": arm, "budget": budget, "demos_per_task": demos, "seed": seed}, *letters)
        for number, ((arm, budget, demos), letters, seed) in enumerate(points)
    ]


@pytest.fixture
def found(rows: list[TrialRow]) -> list[Outcomes]:
    return outcomes(rows, evaluations(rows), "standard")


def test_points_hold_every_seed_and_cell(found: list[Outcomes]):
    assert [tuple(point.values.values()) for point in found] == list(LAID_OUT)
    point = found[2]
    assert point.seeds == (0, 1)
    assert point.success_KSC.shape == (2, 2, 8)
    assert (point.rate(SPOON, "entire"), point.rate(PUMPKIN, "partial")) == (0.5, 0.0)
    # Four cells of the spoon, two of them solved: k of 4 after redrawing is 0 in 1 of 16 draws, and 4 in 1 of 16.
    assert point.interval("avg_all") == (0.25, 0.0, 0.5)
    assert found[3].interval("avg_entire") == (1.0, 1.0, 1.0)


def test_against_scratch_at_the_same_demonstrations(found: list[Outcomes]):
    few, many = differences(found)
    assert (few.against["demos_per_task"], many.against["demos_per_task"]) == (5, 20)
    assert few.by["avg_all"].rate == pytest.approx(1 / 8)
    assert few.by["avg_all"].low == 0.0  # no draw turns it round: it solves all that scratch solves
    assert (few.tests["entire"].num_pairs, few.tests["entire"].only_first) == (16, 2)
    assert few.tests["entire"].p_value == 0.5  # 2 (1/2)^2
    assert many.tests["entire"][1:] == (10, 0, pytest.approx(2 / 2**10))


def test_only_the_seeds_that_both_have_are_compared(rows: list[TrialRow]):
    without = [row for row in rows if row.id != "001"]  # seed 1 of scratch with 5 demonstrations
    few, many = differences(outcomes(without, evaluations(without), "standard"))
    assert (few.num_seeds, few.tests["entire"].num_pairs, many.num_seeds) == (1, 8, 2)


def test_without_arms_the_others_are_held_against_budget_0(rows: list[TrialRow]):
    for row in rows:
        del row.values["arm"]
        row.with_play = row.values["budget"] > 0
    results = evaluations(rows)
    found = outcomes(rows, results, "standard")
    assert [d.values["budget"] for d in differences(found)] == [100, 100]
    assert len(replaced(found)) == 2
    for row in rows:  # budget 0, and a motion prior of all play
        row.with_play = True
    found = outcomes(rows, results, "standard")
    assert (differences(found), replaced(found)) == ([], [])


def test_demonstrations_that_play_replaces(found: list[Outcomes]):
    """2 of 8 lies half-way between scratch's 1 and 3: at the geometric mean of 5 and 20; 8 of 8 lies beyond."""
    few, many = replaced(found)
    assert few.needed.rate == pytest.approx(10)
    assert few.text.startswith("5 with play = 10 without (95 %: ")
    assert many.needed.rate == float("inf")
    assert many.text == "20 with play = > 20 without (95 %: > 20 to > 20)"


def test_an_arm_without_play_replaces_nothing_by_play(rows: list[TrialRow]):
    for row in rows[6:]:  # next_object with 20 demonstrations: say that it is cloning with twice the steps
        row.with_play = False
    [few] = replaced(outcomes(rows, evaluations(rows), "standard"))
    assert few.demos == 5


def test_one_point_is_no_curve(found: list[Outcomes]):
    assert replaced([found[0], found[2]]) == []


def test_other_cells_are_refused(rows: list[TrialRow], tmp_path: Path):
    other = trial(tmp_path, 9, dict(rows[0].values), "....", "....", protocol=make_protocol(seed=7))
    with pytest.raises(DataError, match="The trials of a sweep must be evaluated in the same cells"):
        outcomes([*rows, other], evaluations([*rows, other]), "standard")


ABOUT = About(name="made", command="python -m jobs.sweep made.yaml", wall_s=600.0, plan={"seed": 0})


def test_the_files_to_keep(rows: list[TrialRow], tmp_path: Path):
    waiting = TrialRow(id="008", values=rows[0].values | {"seed": 2}, state="failed", error="disk full")
    files = study_report.write(tmp_path / "results", [*rows, waiting], ABOUT)
    assert [file.name for file in files] == ["made.md", "made.json", "made.png"]

    text = files[0].read_text()
    lines = text.splitlines()
    assert "`python -m jobs.sweep made.yaml`" in lines
    assert "8 of 9 trials evaluated, 10 minutes of wall-clock." in text
    assert "| arm | budget | demos per task | spoon | pumpkin | Avg-P | Avg-E | Avg-All | n a task | seeds |" in lines
    spanned = " | ".join(["25.0 [0.0, 50.0]"] * 3)
    assert f"| next_object | 100 | 5 | 50.0/50.0 | 0.0/0.0 | {spanned} | 4 | 2 |" in lines
    assert any(line.startswith("| next_object | 100 | 5 | +12.5 [+0.0, ") for line in lines)
    assert "| 2 : 0, p 0.5 | 2 : 0, p 0.5 | 2 |" in text
    assert "- arm next_object, budget 100, demos per task 20: 20 with play = > 20 without" in text
    assert "| next_object | 100 | 0.625 | 1 |" in lines
    assert "- 008 (arm scratch, budget 0, demos per task 5, seed 2): failed: disk full" in lines
    assert "![Success over play and demonstrations](made.png)" in lines

    values = json.loads(files[1].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    first = values["trials"][4]
    assert first["axes"] == {"arm": "next_object", "budget": 100, "demos_per_task": 5}
    assert (first["seed"], first["n"], first["wall_s"], first["commit"]) == (0, 8, 90.0, "abc")
    assert first["tasks"][SPOON] == {"standard": {"n": 4, "partial": 2, "entire": 2}}
    assert first["stage_1"]["play/r2_mean"] == 0.625
    assert first["protocol_hash"] == values["protocol"]["hash"] == make_protocol().hash
    assert values["trials"][8]["state"] == "failed"
    assert values["replaced"][1]["needed"] == {"rate": None, "low": None, "high": None}
    assert values["against_scratch"]["standard"][0]["mcnemar"]["entire"]["only_first"] == 2

    assert files[2].stat().st_size < 100_000
    with Image.open(files[2]) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert (pixels < 128).mean() > 0.005


def test_without_a_curve_there_is_no_image(rows: list[TrialRow], tmp_path: Path):
    files = study_report.write(tmp_path / "results", [rows[0], rows[4]], ABOUT)
    assert [file.name for file in files] == ["made.md", "made.json"]
    assert "What play replaces" not in files[0].read_text()


def test_scenario_drops_are_paired_by_cell(tmp_path: Path):
    """Two of eight cells fall, both the spoon's: 0 of its 4 are redrawn in 1 of 16 draws, and 4 in 1 of 16. Unpaired,
    the pumpkin's would vary as well."""
    several = make_protocol(scenarios=("standard", "background"))
    rows = []
    for seed in (0, 1):
        folder = tmp_path / f"{seed}"
        success = {SPOON: "eeee", f"{SPOON}/background": "ee..", PUMPKIN: "ee.."}
        runs = {"evaluate": str(make_result(folder, success, protocol=several))}
        rows.append(TrialRow(id=f"{seed}", values={"arm": "tap", "seed": seed}, runs=runs, result={"avg_all": 0.6}))
    page, file = study_report.write(tmp_path / "results", rows, ABOUT)
    block = "| arm | background |\n| --- | --- |\n| tap | {} |"
    assert block.format("+25.0 [+0.0, +50.0]") in page.read_text()
    record = json.loads(file.read_text())
    del record["points"]["background"][0]["drop"]  # as in a study from before
    assert block.format("+25.0") in study_page.tables(record)
    del record["points"]["background"]
    assert "Scenario drops" not in study_page.tables(record)


def test_instructions_followed_are_those_of_all_seeds_together(rows: list[TrialRow], tmp_path: Path):
    _, file, *_ = study_report.write(tmp_path, rows, ABOUT)
    record = json.loads(file.read_text())
    assert "follow the instruction" not in study_page.tables(record)
    assert "two cells of one scene" not in study_page.tables(record)
    for trial in record["trials"]:  # 2 seeds x 2 tasks: 16 of 20 episodes that moved an object, of 24
        for count in trial["tasks"].values():
            count["standard"] |= {"followed": {"k": 4, "n": 5}, "wrong_object": {"k": 1, "n": 6}}
    text = study_page.tables(record)
    assert text.index(study_page.MIXED) < text.index(study_page.FOLLOWED)
    lines = text.splitlines()
    assert "| next_object | 100 | 5 | 16 of 20 | 80.0 [58.4, 91.9] | 4 of 24 | 16.7 [6.7, 35.9] |" in lines
    for trial in record["trials"]:
        for count in trial["tasks"].values():
            count["standard"] |= {"followed": {"k": 0, "n": 0}, "wrong_object": {"k": 0, "n": 6}}
    lines = study_page.tables(record).splitlines()
    assert "| next_object | 100 | 5 | 0 of 0 | - | 0 of 24 | 0.0 [0.0, 13.8] |" in lines, "nothing was moved"


def test_nothing_is_written_before_a_trial_was_evaluated(tmp_path: Path):
    assert study_report.write(tmp_path / "results", [TrialRow(id="000", values={})], ABOUT) == []
    assert not (tmp_path / "results").exists()


PUBLISHED = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_the_tables_of_a_published_study_are_those_of_its_json(file: Path, tmp_path: Path):
    """Otherwise: python -m tap_ray.sweep.study_page docs/results/*.json"""
    for each in (file, file.with_suffix(".md"), file.with_suffix(".png")):
        if each.exists():
            shutil.copy(each, tmp_path)
    page = study_page.write(tmp_path / file.name)
    assert page.read_text() == file.with_suffix(".md").read_text()


def test_what_people_wrote_stays_when_tables_are_written_again(rows: list[TrialRow], tmp_path: Path):
    page, *_ = study_report.write(tmp_path, rows, ABOUT)
    page.write_text("# Title\n\nThe answer.\n" + page.read_text().split("\n", 1)[1] + "\nWhat to know.\n")
    before = page.read_text()
    study_report.write(tmp_path, rows[:2], ABOUT)
    assert page.read_text().startswith("# Title\n\nThe answer.\n")
    assert page.read_text().endswith("\nWhat to know.\n")
    assert "2 of 2 trials evaluated" in page.read_text()
    study_report.write(tmp_path, rows, ABOUT)
    assert page.read_text() == before


def test_a_page_without_marks_is_refused(rows: list[TrialRow], tmp_path: Path):
    (tmp_path / "made.md").write_text("# Mine\n")
    with pytest.raises(DataError, match=r"lacks the lines '<!-- tables: written from made.json, do not edit -->' and"):
        study_report.write(tmp_path, rows, ABOUT)
    assert (tmp_path / "made.md").read_text() == "# Mine\n"
