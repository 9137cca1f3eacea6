import json
import math

import pandas as pd
import pytest

from tap_ray.compare import tables
from tap_ray.compare.reading import read_curves, read_runs
from tap_ray.errors import CheckpointError, DataError
from tests.compare.evaluated_runs import TASKS, make_protocol, make_result, make_training


def test_our_rows_by_hand(two):
    results, _ = read_runs(two)
    assert tables.columns(results) == ["spoon", "pumpkin", "Avg-P", "Avg-E", "Avg-All"]
    first, second = tables.our_rows(results, "standard")
    # tap: spoon 4/4 partial, 3/4 entire; pumpkin 1/4, 1/4: averages 5/8, 4/8, and their mean.
    assert first.values == ("100.0/75.0", "25.0/25.0", "62.5", "50.0", "56.2")
    # scratch: spoon 2/4, 1/4; pumpkin 4/4, 4/4.
    assert second.values == ("50.0/25.0", "100.0/100.0", "75.0", "62.5", "68.8")
    # Wilson: 4/4 is 4/(4+z^2) = 51.0; 3/4 is 30.1-95.4; 4/8 is 21.5-78.5
    assert first.intervals[0] == "51-100/30-95"
    assert first.intervals[3] == "22-78"
    assert (first.label, first.n) == ("tap", "4")


def test_the_papers_rows_are_those_of_the_paper():
    headings = ["spoon", "carrot", "stack", "eggplant", "pumpkin", "Avg-P", "Avg-E", "Avg-All"]
    rows = {row.label: row.values for row in tables.paper_rows(headings)}
    assert rows["TAP-20k"] == ("66.7/58.3", "50.0/0", "58.3/16.7", "8.3/8.3", "-", "45.82", "20.82", "33.32")
    assert len(rows) == 8
    for values in rows.values():  # their averages follow from their cells, within their own rounding
        for kind in (0, 1):
            cells = [float(value.split("/")[kind]) for value in values[:4]]
            assert math.isclose(sum(cells) / 4, float(values[5 + kind]), abs_tol=0.06)


def test_paired_tests_by_hand(two):
    results, _ = read_runs(two)
    tests = {(t.scope, t.kind): t for t in tables.comparisons(results)}
    # Entire, spoon: eee. against e...: two cells only the first; pumpkin: e... against eeee: three only the second.
    spoon = tests[TASKS[0], "entire"]
    assert (spoon.only_first, spoon.only_second, spoon.num_cells, spoon.p_value) == (2, 0, 4, 0.5)
    pumpkin = tests[TASKS[1], "entire"]
    assert (pumpkin.only_first, pumpkin.only_second, pumpkin.p_value) == (0, 3, 0.25)
    whole = tests["all cells", "entire"]
    # 2 (C(5,0) + C(5,1) + C(5,2)) / 2^5 = 1
    assert (whole.only_first, whole.only_second, whole.num_cells, whole.p_value) == (2, 3, 8, 1.0)
    # Partial, all: spoon pppp/pp.. -> 2, pumpkin p.../pppp -> 3
    assert tests["all cells", "partial"].only_second == 3
    assert len(tests) == 6


def test_scenarios_are_tables_and_scopes_of_their_own(tmp_path):
    protocol = make_protocol(scenarios=("standard", "background"))
    outcomes = {TASKS[0]: "eeee", TASKS[1]: "...."}
    runs = [make_result(tmp_path / name, outcomes, protocol=protocol) for name in ("a", "b")]
    results, _ = read_runs(runs)
    assert results[0].scenarios == ["standard", "background"]
    scopes = {test.scope: test.num_cells for test in tables.comparisons(results)}
    assert scopes == {TASKS[0]: 4, TASKS[1]: 4, "standard": 8, "background": 8}
    text = tables.text_table(results)
    assert text.count("Wilson") == 2
    # 4 of 8 both times: 21.5-78.5
    assert "a    50.0/50.0    50.0/50.0  50.0/50.0  8" in text
    assert "   22-78/22-78  22-78/22-78" in text


FALLS = {TASKS[0]: "eeee", TASKS[1]: "eep.", f"{TASKS[0]}/background": "eepp", f"{TASKS[1]}/viewpoint": "eeep"}
"""Entirely: standard 4 + 2 of 8, background 2 + 2, viewpoint 4 + 3."""


def test_robustness_by_hand(tmp_path):
    protocol = make_protocol(scenarios=("standard", "background", "viewpoint"))
    folder = make_result(tmp_path / "tap", FALLS, protocol=protocol)
    results, _ = read_runs([folder])
    [row] = tables.drop_rows(results)
    # Background: 2 of 8 only in standard. Bonett-Price: (3 - 1)/10 +- z sqrt((0.4 - 0.04)/10) = -17.2 .. 57.2.
    # McNemar: 2 * (1/2)^2. Viewpoint: one only there: (1 - 2)/10 +- z sqrt((0.3 - 0.01)/10) = -43.4 .. 23.4.
    assert row.values == ("25.0", "-12.5")
    assert row.intervals == ("-17..57, p 0.5", "-43..23, p 1")
    assert row.n == "8"
    headings, rows = tables.robustness_rows(results[0])
    assert headings == ["spoon", "pumpkin", "Avg-P", "Avg-E", "Avg-All", "drop"]
    assert [row.label for row in rows] == ["standard", "background", "viewpoint"]
    assert [row.values[-1] for row in rows] == ["", "25.0", "-12.5"]
    # Background: spoon 4 partial, 2 entire; pumpkin 3, 2.
    assert rows[1].values[:5] == ("100.0/50.0", "75.0/50.0", "87.5", "50.0", "68.8")
    lines = tables.text_table(results, with_paper=False).splitlines()
    assert lines[0] == f"tap, robustness: {tables.RULE}"
    assert lines[2].split() == [*headings, "n"]
    assert lines[4].split() == ["standard", "100.0/100.0", "75.0/50.0", "87.5", "75.0", "81.2", "4"]
    assert lines[6].split()[-2:] == ["25.0", "4"]
    # (87.5 + 87.5 + 100) / 3 partly, (75 + 50 + 87.5) / 3 entirely.
    assert lines[-1] == "mean over scenarios: 91.7/70.8"
    assert max(map(len, lines)) <= 120


def test_several_runs_scenarios_stand_side_by_side(tmp_path):
    protocol = make_protocol(scenarios=("standard", "background", "viewpoint"))
    runs = [make_result(tmp_path / "a", FALLS, protocol=protocol)]
    runs.append(make_result(tmp_path / "b", dict.fromkeys(TASKS, "eeee"), protocol=protocol))
    results, _ = read_runs(runs)
    text = tables.text_table(results)
    assert text.startswith("standard: percent partial/entire")
    heads = [line.split() for line in text.splitlines()]
    assert ["standard", "background", "viewpoint", "average", "n"] in heads
    assert ["background", "viewpoint", "n"] in heads
    assert "drop of entire success, standard minus scenario" in text
    assert tables.PAPER_ROBUSTNESS_TITLE in text
    [line] = [line for line in text.splitlines() if line.startswith("TAP, pumpkin")]
    assert line.split()[2:] == ["75", "65", "25", "61", "20"]
    assert [row.values for row in tables.drop_rows(results)] == [("25.0", "-12.5"), ("0.0", "0.0")]


def test_without_the_standard_scenario_there_is_no_drop(tmp_path):
    protocol = make_protocol(scenarios=("background", "viewpoint"))
    results, _ = read_runs([make_result(tmp_path / "a", FALLS, protocol=protocol)])
    assert tables.drop_rows(results) == []
    headings, _ = tables.robustness_rows(results[0])
    assert "drop" not in headings
    assert "drop" not in tables.text_table(results)


def test_the_papers_robustness_adds_up():
    names = ["standard", "initial_state", "distractors", "background", "viewpoint", "average", "dark"]
    for row in tables.paper_robustness_rows(names):
        *scenarios, mean, unknown = row.values
        assert sum(map(float, scenarios)) / 5 == float(mean)
        assert (unknown, row.n) == ("-", "20")


def test_text_table(two):
    text = tables.text_table(read_runs(two)[0])
    lines = text.splitlines()
    assert lines[1].split() == ["spoon", "pumpkin", "Avg-P", "Avg-E", "Avg-All", "n"]
    assert lines[3].split() == ["tap", "100.0/75.0", "25.0/25.0", "62.5", "50.0", "56.2", "4"]
    assert lines[4].split()[0] == "51-100/30-95"
    assert tables.PAPER_TITLE in text
    assert "not comparable" in tables.PAPER_TITLE
    assert lines[-1].split("  ")[0] == "tap | scratch"
    assert lines[-1].split()[3:] == ["entire", "2", "3", "1", "8"]
    assert max(map(len, lines)) <= 120
    assert "TAP-20k" not in tables.text_table(read_runs(two)[0], with_paper=False)


def test_p_text():
    assert [tables.p_text(p) for p in (1.0, 0.0312, 1e-5)] == ["1", "0.031", "<0.0001"]


def test_one_run_alone_needs_no_partner(two):
    results, curves = read_runs(two[:1])
    assert tables.comparisons(results) == []
    assert curves == []


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_result(tmp_path / f, dict.fromkeys(TASKS, "...."), name="align") for f in ("x", "y")]
    assert [result.label for result in read_runs(runs)[0]] == ["align (x)", "align (y)"]
    same = [make_result(tmp_path / f / "x", dict.fromkeys(TASKS, "...."), name="align") for f in ("1", "2")]
    assert [result.label for result in read_runs(same)[0]] == ["align (x) #1", "align (x) #2"]


def test_another_protocol_is_refused(two, tmp_path):
    other = make_result(
        tmp_path / "other", {TASKS[0]: "eeeee", TASKS[1]: "eeeee"}, protocol=make_protocol(episodes=5, image_size=64)
    )
    with pytest.raises(CheckpointError) as caught:
        read_runs([two[0], other])
    text = str(caught.value)
    assert str(two[0]) in text
    assert str(other) in text
    assert "different protocols" in text
    assert "image_size: 96 there, 64 here" in text
    assert make_protocol().hash in text


def test_same_hash_other_cells_is_refused(two):
    table = pd.read_parquet(two[1] / "episodes.parquet")
    table["seed"] += 1
    table.to_parquet(two[1] / "episodes.parquet")
    with pytest.raises(DataError, match=r"have the same protocol \w+ but different cells: 8 and 8 episodes"):
        read_runs(two)


def test_results_that_do_not_add_up_are_refused(two):
    data = json.loads((two[0] / "results.json").read_text())
    data["tasks"][TASKS[0]]["standard"]["entire"]["k"] = 4
    (two[0] / "results.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"disagree on put_spoon_on_cloth / standard.*\(4, 4, 4\).*\(4, 4, 3\)"):
        read_runs(two)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda run: (run / "episodes.parquet").unlink(), "episodes.parquet is missing"),
        (lambda run: (run / "episodes.parquet").write_bytes(b"PAR1"), "episodes.parquet cannot be read"),
        (lambda run: (run / "results.json").write_text("{"), "is not valid JSON"),
        (lambda run: (run / "results.json").write_text('{"protocol": {}}'), "lacks policy, tasks, seconds"),
        (lambda run: (run / "results.json").unlink(), "contains neither results.json nor metrics.jsonl"),
    ],
)
def test_damaged_folders_are_refused(two, damage, text):
    damage(two[0])
    with pytest.raises(CheckpointError, match=text):
        read_runs(two)


def test_no_runs_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is nothing to compare"):
        read_runs([])
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_curves_of_a_policy_and_of_what_it_came_from_are_found(tmp_path):
    pretrain = make_training(tmp_path / "pretrain-1", "idm")
    align = make_training(tmp_path / "align-1", "align", init=pretrain)
    result = make_result(tmp_path / "eval", dict.fromkeys(TASKS, "eee."), name="tap", run=align)
    _, curves = read_runs([result])
    assert [c.label for c in curves] == ["tap", "pretrain-1"]
    assert curves[0].points["metric"].unique().tolist() == ["align/loss", "align/lr", "align/val_loss"]
    assert len(curves[0].points) == 60


def test_a_resumed_and_a_cut_off_log(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = ['{"step": 1, "loss": 3}', '{"step": 2, "loss": 2}', '{"step": 2, "loss": 1.5}', '{"step": 3, "lo']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    points = read_curves(run, "run").points
    assert points[["step", "value"]].to_numpy().tolist() == [[1, 3.0], [2, 1.5]]
    (run / "metrics.jsonl").write_text("\n".join(["oops", *lines]))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 1 is not a JSON object with a step: 'oops'"):
        read_curves(run, "run")
