import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from tap_ray import logs, storage
from tap_ray.errors import StorageError
from tap_ray.evaluate import results as results_file
from tap_ray.evaluate.episodes import crashed
from tap_ray.evaluate.failures import LABELS
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.results import append, metrics, stored, summarize, write_parquet
from tap_ray.types import EpisodeResult
from tests.fresh import another_process

PROTOCOL = Protocol(tasks=("a", "b"), env_version="1", episodes=4)


def result(cell, partial, entire, *, at_end=True, failure=""):
    return EpisodeResult(
        cell=cell,
        partial_once=partial,
        entire_once=entire,
        partial_end=partial and at_end,
        entire_end=entire and at_end,
        num_steps=60,
        num_clipped=2,
        seconds=0.5,
        policy_ms=3.0,
        failure=failure,
    )


def laid_out():
    """a: 3 of 4 partly, 2 entirely (1 of them not at the end); b: 1 partly, 0 entirely, 1 crashed."""
    a, b = cells(PROTOCOL)[:4], cells(PROTOCOL)[4:]
    return [
        result(a[0], True, True),
        result(a[1], True, True, at_end=False),
        result(a[2], True, False, failure="dropped"),
        result(a[3], False, False, failure="never_reached"),
        result(b[0], True, False, failure="misplaced"),
        result(b[1], False, False, failure="missed_grasp"),
        result(b[2], False, False, failure="missed_grasp"),
        crashed(b[3], "RuntimeError: fell off"),
    ]


def test_the_papers_averages_by_hand():
    summary = summarize(laid_out(), PROTOCOL, policy="bc", run="runs/align-1")
    assert summary["protocol"]["hash"] == PROTOCOL.hash
    assert summary["protocol"]["success"] == "once"
    assert summary["policy"] == {"name": "bc", "run": "runs/align-1"}
    a, b = summary["tasks"]["a"]["standard"], summary["tasks"]["b"]["standard"]
    assert (a["n"], a["partial"]["k"], a["entire"]["k"], a["partial_end"]["k"], a["entire_end"]["k"]) == (4, 3, 2, 2, 1)
    # The crash stays in the denominator: 1 of 4.
    assert (b["n"], b["partial"]["rate"], b["errors"]) == (4, 0.25, 1)
    # Avg-Partial = (3/4 + 1/4) / 2; Avg-Entire = (2/4 + 0) / 2; Avg-All = mean of the four rates.
    assert (summary["avg_partial"], summary["avg_entire"], summary["avg_all"]) == (0.5, 0.25, 0.375)
    assert summary["errors"] == 1
    assert summary["seconds"] == 3.5
    assert summary["policy_ms"] == 3.0


def test_intervals_by_hand():
    summary = summarize(laid_out(), PROTOCOL, policy="bc")
    # Wilson, 2 of 4: center 1/2, half width z/(1+z^2/4) sqrt(1/16 + z^2/64) with z^2 = 3.8415: 0.3500.
    entire = summary["tasks"]["a"]["standard"]["entire"]
    assert (entire["low"], entire["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    # 0 of 4: the upper end is z^2 / (4 + z^2) = 0.4899.
    none = summary["tasks"]["b"]["standard"]["entire"]
    assert (none["low"], none["high"]) == pytest.approx((0.0, 0.4899), abs=1e-4)
    # Pooled 2 of 8: center (1/4 + z^2/16)/(1 + z^2/8) = 0.3311, half 0.2600.
    assert summary["avg_entire_interval"] == pytest.approx([0.0715, 0.5907], abs=1e-4)


def test_a_summary_is_plain_strict_json():
    summary = summarize(laid_out(), PROTOCOL, policy="random")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    broken = [crashed(cell, "X: y") for cell in cells(PROTOCOL)]
    assert summarize(broken, PROTOCOL, policy="p")["policy_ms"] is None


NO_FAILURE = dict.fromkeys((*LABELS, "unlabeled"), 0)


def test_failures_by_hand():
    summary = summarize(laid_out(), PROTOCOL, policy="bc")
    a, b = (summary["tasks"][task]["standard"]["failures"] for task in "ab")
    assert a["count"] == {**NO_FAILURE, "dropped": 1, "never_reached": 1}
    assert b["count"] == {**NO_FAILURE, "misplaced": 1, "missed_grasp": 2, "crashed": 1}
    # 1 of 2: center 1/2, half width z sqrt(1/8 + z^2/16) / (1 + z^2/2) = 0.4055.
    assert a["execution"] == pytest.approx({"k": 1, "n": 2, "rate": 0.5, "low": 0.0945, "high": 0.9055}, abs=1e-4)
    assert a["semantic"] == a["execution"]
    # The crash has no class: 3 of 3, the lower end is 3 / (3 + z^2) = 0.4385.
    assert b["execution"] == pytest.approx({"k": 3, "n": 3, "rate": 1.0, "low": 0.4385, "high": 1.0}, abs=1e-4)
    assert (b["semantic"]["k"], b["semantic"]["rate"]) == (0, 0.0)
    whole = summary["failures"]
    assert whole["count"] == {name: a["count"][name] + b["count"][name] for name in NO_FAILURE}
    assert (whole["execution"]["k"], whole["execution"]["n"], whole["execution"]["rate"]) == (4, 5, 0.8)
    assert summary["failure_class"]["dropped"] == "execution"


def test_without_failures_the_classes_have_no_share():
    perfect = [result(cell, True, True) for cell in cells(PROTOCOL)]
    found = summarize(perfect, PROTOCOL, policy="p")["failures"]
    assert found["count"] == NO_FAILURE
    assert found["semantic"] == {"k": 0, "n": 0, "rate": None, "low": 0.0, "high": 1.0}


def test_failures_as_metrics_are_shares_of_all_episodes():
    flat = metrics(summarize(laid_out(), PROTOCOL, policy="bc"))
    assert flat["evaluate/failures/missed_grasp"] == 2 / 8
    assert flat["evaluate/failures/wrong_object"] == 0
    assert flat["evaluate/failures/crashed"] == 1 / 8
    assert all(isinstance(value, (int, float)) for value in flat.values())


def test_episodes_of_a_tap_ray_without_labels_are_read_and_told_apart(tmp_path):
    path = tmp_path / "e.jsonl"
    append(path, laid_out())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "failure"}) + "\n" for row in lines))
    old = list(stored(path).values())
    assert {r.failure for r in old} == {""}
    found = summarize(old, PROTOCOL, policy="p")["failures"]
    assert found["count"] == {**NO_FAILURE, "unlabeled": 5, "crashed": 1}
    assert found["execution"]["rate"] is None


def test_every_scenario_counts():
    protocol = replace(PROTOCOL, scenarios=("standard", "texture"))
    results = [result(cell, True, cell.scenario == "standard") for cell in cells(protocol)]
    summary = summarize(results, protocol, policy="p")
    assert summary["tasks"]["a"]["texture"]["entire"]["rate"] == 0
    assert (summary["avg_partial"], summary["avg_entire"], summary["avg_all"]) == (1.0, 0.5, 0.75)


def test_one_row_an_episode(tmp_path):
    write_parquet(tmp_path / "e.parquet", laid_out())
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert len(rows) == 8
    first = laid_out()[0]
    assert rows[0] == {
        "task": "a", "scenario": "standard", "initial_state": 0, "seed": first.cell.seed,
        "partial_once": True, "entire_once": True, "partial_end": True, "entire_end": True,
        "num_steps": 60, "num_clipped": 2, "seconds": 0.5, "policy_ms": 3.0, "error": "", "failure": "",
            "partner": "", "first_moved": "",
    }  # fmt: skip
    assert rows[7]["error"] == "RuntimeError: fell off"
    assert [row["failure"] for row in rows[2:4]] == ["dropped", "never_reached"]


def test_what_is_appended_is_found_again(tmp_path):
    path = tmp_path / "e.jsonl"
    assert stored(path) == {}
    append(path, laid_out()[:3])
    append(path, laid_out()[3:])
    assert stored(path) == {r.cell: r for r in laid_out()}


def test_a_line_cut_off_by_a_kill_is_run_again(tmp_path):
    path = tmp_path / "e.jsonl"
    append(path, laid_out())
    path.write_text(path.read_text()[:-5])
    assert stored(path) == {r.cell: r for r in laid_out()[:-1]}
    append(path, laid_out()[-1:])
    assert stored(path) == {r.cell: r for r in laid_out()}


def test_a_disk_that_refuses(tmp_path):
    with pytest.raises(StorageError, match=re.escape("e.jsonl: No such file or directory. Free some space")):
        append(tmp_path / "gone" / "e.jsonl", laid_out())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*e.parquet: "):
        write_parquet(tmp_path / "file" / "e.parquet", laid_out())


def test_results_in_an_object_store_are_stored_once_each(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Two lives: the second finds what the first appended, in parts; a result that comes again is none more."""
    file, results = storage.to_path(bucket) / "episodes.jsonl", laid_out()
    append(file, results[:2])
    append(file, [])
    append(file, results[2:4])
    assert list(stored(file).values()) == results[:4]
    monkeypatch.setattr(results_file, "logs", another_process())
    append(file, results[3:])
    assert list(stored(file).values()) == results
    logs.join(file)
    assert len(file.read_text().splitlines()) == len(results) + 1
    assert list(stored(file).values()) == results
