"""The life of a collection job, around the collection: what is left to do after a kill, and nothing twice."""

import json
from pathlib import Path

import pytest

from jobs import collect_play
from tap_ray import runs, tracking
from tap_ray.errors import ConfigError
from tap_ray.play.explorers import ExplorerConfig
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.play.settings import PlayJobConfig

FAST = ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300))


def job(out: Path) -> PlayJobConfig:
    return PlayJobConfig(
        episodes=2, max_steps=10, image_size=16, fleets=1, explorer="waypoint", explorers=FAST, out=out
    )


def status_in_mlflow(out: Path) -> str:
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri()).get_run(str(tracking.run_id_of(out))).info.status


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.long_proof
def test_a_job_killed_after_its_last_commit_is_completed(tmp_path, mlflow_uri, monkeypatch, capsys):
    out = tmp_path / "play"

    def killed(_: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collect_play, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_play.main(job(out))
    assert runs.read_json(out / "manifest.json")["status"] == "running"
    assert status_in_mlflow(out) == "KILLED"
    capsys.readouterr()

    assert collect_play.main(job(out)) == out
    assert (
        "already had its episodes; the missing parts of its report and manifest were written" in capsys.readouterr().out
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["kept"], manifest["report"]) == ("done", {"play": 2}, "report/report.md")
    assert "frames_per_s" not in manifest  # nothing was measured
    assert status_in_mlflow(out) == "FINISHED"

    before = (out / "report/report.md").stat().st_mtime_ns
    collect_play.main(job(out))
    assert "already has its 2 episodes" in capsys.readouterr().out
    assert (out / "report/report.md").stat().st_mtime_ns == before
    (out / "report/report.md").unlink()
    collect_play.main(job(out))
    assert (out / "report/report.md").exists()


@pytest.mark.parametrize("episodes", [0, -3])
def test_no_episodes_are_refused(episodes):
    from jobs import collect_demos
    from tap_ray.play.settings import DemosJobConfig

    with pytest.raises(ConfigError, match=f"collect_demos must collect at least 1 episode; got --episodes {episodes}"):
        collect_demos.main(DemosJobConfig(episodes=episodes))
