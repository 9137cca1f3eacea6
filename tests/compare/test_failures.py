import json

from tap_ray.compare import failures
from tap_ray.compare.reading import read_runs
from tests.compare.evaluated_runs import TASKS, make_protocol, make_result


def test_counts_and_shares_by_hand(two):
    """tap: spoon eeep, pumpkin e...: 1 dropped (execution), 3 never reached (semantic), of 8."""
    [tap, _], _ = read_runs(two)
    whole = failures.of_scenario(tap, "standard")
    assert (whole.name, whole.num_episodes, whole.num_failed) == ("tap", 8, 4)
    assert {label: k for label, k in whole.count.items() if k} == {"dropped": 1, "never_reached": 3}
    # Wilson of 1 of 4: 4.6-69.9.
    assert (failures.percent(whole.share["execution"]), failures.span(whole.share["execution"])) == ("25 %", "5-70")
    assert failures.percent(whole.share["semantic"]) == "75 %"
    spoon = failures.of_task(tap, TASKS[0], "standard")
    assert (spoon.name, spoon.num_episodes, spoon.num_failed, spoon.count["dropped"]) == ("spoon", 4, 1, 1)


def test_the_table_of_a_terminal(two):
    [tap, _], _ = read_runs(two)
    lines = failures.failure_table(tap).splitlines()
    columns = ["failed", "missed", "grasp", "dropped", "misplaced", "timed", "out", "never", "reached", "wrong"]
    assert lines[1].split() == [*columns, "object", "n"]
    assert lines[3].split() == ["spoon", "1", "0", "1", "0", "0", "0", "0", "4"]
    assert lines[4].split() == ["pumpkin", "3", "0", "0", "0", "0", "3", "0", "4"]
    assert lines[5].split() == ["all,", "standard", "4", "0", "1", "0", "0", "3", "0", "8"]
    assert lines[6] == "share of these failures, Wilson 95 %: execution 25 % (5-70), semantic 75 % (30-95)"
    assert len(lines) == 7
    assert max(map(len, lines)) <= 120


def test_every_scenario_has_a_row_and_crashes_have_a_column(tmp_path):
    protocol = make_protocol(scenarios=("standard", "background"))
    run = make_result(tmp_path / "a", {TASKS[0]: ".eee", TASKS[1]: "eeee"}, protocol=protocol, error="RuntimeError: x")
    text = failures.failure_table(read_runs([run])[0][0])
    assert [line.split()[:2] for line in text.splitlines()[5:7]] == [["all,", "standard"], ["all,", "background"]]
    assert text.splitlines()[1].split()[-2:] == ["crashed", "n"]
    assert text.splitlines()[5].split()[2:] == ["1", "0", "0", "0", "0", "0", "0", "1", "8"]
    assert text.splitlines()[6].split()[2:] == ["1", "0", "0", "0", "0", "1", "0", "0", "8"]
    assert text.splitlines()[-1].split()[0] == "all,"  # the only failure crashed: the classes have no share


def test_without_failures(tmp_path):
    run = make_result(tmp_path / "a", dict.fromkeys(TASKS, "eeee"))
    result = read_runs([run])[0][0]
    assert failures.of_scenario(result, "standard").num_failed == 0
    assert "share" not in failures.failure_table(result)
    [row] = failures.page_rows([failures.of_scenario(result, "standard")], ["dropped"], ["execution"])
    assert row["cells"] == [
        {"value": "0", "interval": "0 %"},
        {"value": "0", "interval": ""},
        {"value": "-", "interval": ""},
    ]


def test_a_result_without_labels_is_shown_as_such(two):
    data = json.loads((two[0] / "results.json").read_text())
    del data["failure_class"], data["failures"]
    for row in data["tasks"].values():
        del row["standard"]["failures"]
    (two[0] / "results.json").write_text(json.dumps(data))
    [old, new], _ = read_runs(two)
    rows = [failures.of_scenario(result, "standard") for result in (old, new)]
    assert rows[0].count == {"unlabeled": 4}
    assert rows[0].share == {}
    labels = failures.labels_of(rows, new.failure_class)
    assert labels[-1] == "unlabeled"
    first, second = failures.page_rows(rows, labels, ["execution", "semantic"])
    assert [cell["value"] for cell in first["cells"]] == ["4", *"000000", "4", "-", "-"]
    # scratch: 1 dropped, 2 never reached. Wilson of 1 of 3: 6.1-79.2.
    assert second["cells"][-2] == {"value": "33 %", "interval": "6-79"}
