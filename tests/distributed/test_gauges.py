"""The Grafana dashboard asks for metrics that there are."""

import json
import re
from pathlib import Path

import pytest

from tap_ray.distributed.gauges import COUNTERS, GAUGES, absolute_tags

DASHBOARD = Path(__file__).parents[2] / "clusters/grafana.json"


def test_the_dashboard_draws_every_metric_and_no_other():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queried = {name for panel in panels for t in panel["targets"] for name in re.findall(r"ray_tap_\w+", t["expr"])}
    assert queried == {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


def test_labels_in_the_dashboard_are_tags_of_their_metric():
    tags = {f"ray_{name}_total": keys for name, (_, keys) in COUNTERS.items()}
    tags |= {f"ray_{name}": keys for name, (_, keys) in GAUGES.items()}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"ray_tap_\w+", target["expr"])
            labels = re.findall(r"by \(([^)]*)\)", target["expr"])[0].split(", ")
            labels += re.findall(r"{{(\w+)}}", target["legendFormat"]) + re.findall(r"(\w+)=~", target["expr"])
            assert set(labels) <= set(tags[name]), target["expr"]


def test_a_run_has_one_name_from_whichever_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_tags({"run": "play", "state": "done"}) == {"run": f"{tmp_path}/play", "state": "done"}
    assert absolute_tags({"run": "s3://lab/play"}) == {"run": "s3://lab/play"}
