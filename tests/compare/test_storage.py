"""A manifest cannot make a comparison connect to a storage that nobody named."""

import json
from pathlib import Path

import pytest

from tap_ray import storage
from tap_ray.compare.reading import read_runs
from tap_ray.compare.tables import text_table
from tests.compare.evaluated_runs import TASKS, make_result, make_training
from tests.s3 import Wire

OUTCOMES = dict.fromkeys(TASKS, "ee..")


def upload(folder: Path, where: str) -> str:
    for file in folder.iterdir():
        storage.write(storage.to_path(f"{where}/{file.name}"), file.read_bytes())
    return where


@pytest.mark.parametrize("named", ["policy", "Stage 1"])
def test_a_local_evaluation_does_not_lead_to_a_bucket(named: str, bucket: str, wire: Wire, tmp_path: Path):
    away = upload(make_training(tmp_path / "away", "play"), f"{bucket}/away")
    run = make_training(tmp_path / "align", "bc")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["parents"] = {"init": {"path": away, "hash": "0"}, "demos": {"path": f"{bucket}/demos", "hash": "1"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "config.json").write_text("{}")
    evaluation = make_result(tmp_path / "evaluation", OUTCOMES)
    results = json.loads((evaluation / "results.json").read_text())
    results["policy"]["run"] = away if named == "policy" else str(run)
    (evaluation / "results.json").write_text(json.dumps(results))

    before = len(wire.requests)
    read, curves = read_runs([evaluation])
    assert wire.requests[before:] == []
    assert [curve.label for curve in curves] == ([] if named == "policy" else ["evaluation"])
    assert f"evaluation: {away} was not read, because it lies in another storage" in text_table(read)

    _, curves = read_runs([evaluation, storage.to_path(away)])
    assert "away" in [curve.label for curve in curves]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/runs/a", "file:///runs/b", True),
        ("runs/a", Path("/runs/b"), True),
        ("s3://here/a", "s3://here/b/c", True),
        ("s3://here/a", "s3://there/a", False),
        ("s3://here/a", "gs://here/a", False),
        ("s3://here/a", "/here/a", False),
    ],
)
def test_what_one_storage_is(one: str | Path, other: str | Path, same: bool):
    assert storage.is_same(one, other) is same
    assert storage.is_same(other, one) is same
