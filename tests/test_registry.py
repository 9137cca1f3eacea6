"""The model registry, against a real SQLite store: our run folder goes in, the same files come out."""

import json
import shutil
from pathlib import Path

import pytest

from tap_ray import registry, runs, tracking
from tap_ray.errors import CheckpointError


@pytest.fixture
def here(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty default store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return tmp_path


def trained(folder: Path, *, job: str = "align", seed: int = 0) -> Path:
    """A run folder as jobs.align leaves it, with checkpoints that nobody needs any more."""
    run = runs.open_run(folder, job=job, config={"seed": seed})
    for file in ("final/model.safetensors", "final/vision/config.json", "checkpoints/step-00000001/state.json"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{file} {seed}")
    runs.finish(run)
    return folder


def put(run: Path, tracked: tracking.Run, avg_all: float) -> str:
    tags = {"avg_all": str(avg_all), "play": "abc"}
    return registry.register(run, tracked, metadata={"lineage": {"play": "abc"}}, tags=tags, description="| a table |")


def test_what_goes_in_comes_out(here: Path):
    run = trained(here / "runs" / "align-1")
    with tracking.start("sweep", here / "runs" / "sweep-1", {}) as tracked:
        assert put(run, tracked, 0.5) == "1"
        assert put(run, tracked, 0.5) == "1", "a sweep that is run again registers nothing twice"
    for name in ("models:/tap/1", Path("models:/tap/1"), "models://tap/1"):
        folder = registry.local(name)
        assert folder == Path("runs/models/tap-1")
    for file in ("manifest.json", "config.json", "final/model.safetensors", "final/vision/config.json"):
        assert (folder / file).read_bytes() == (run / file).read_bytes()
    assert not (folder / "checkpoints").exists()
    assert runs.require_done(folder, job="align")["hash"] == runs.hash_of(run)
    assert json.loads((folder / registry.FACTS).read_text()) == {"lineage": {"play": "abc"}}
    stored = tracking.client_of().get_model_version("tap", "1")
    assert stored.tags == {"avg_all": "0.5", "play": "abc", "align": runs.hash_of(run)}
    assert stored.description == "| a table |"
    assert [path.suffix for path in (here / "mlartifacts").rglob("*.pkl")] == []


def test_a_half_fetched_policy_is_fetched_again(here: Path):
    run = trained(here / "runs" / "align-1")
    with tracking.start("sweep", here / "runs" / "sweep-1", {}) as tracked:
        put(run, tracked, 0.5)
    folder = registry.local("models:/tap/1")
    (folder / "manifest.json").unlink()
    assert runs.is_done(registry.local("models:/tap/1"))
    assert (folder / "final/model.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["tap-1"]


def test_an_alias_names_the_best(here: Path):
    with tracking.start("sweep", here / "runs" / "sweep-1", {}) as tracked:
        first, second, third = (
            put(trained(here / "runs" / f"align-{seed}", seed=seed), tracked, score)
            for seed, score in enumerate((0.5, 0.4, 0.6))
        )
        promoted = [registry.promote(v, "best-1", score="avg_all", uri=tracked.uri) for v in (first, second, third)]
    assert promoted == [True, False, True]
    assert registry.local("models:/tap@best-1").name == f"tap-{third}"


def test_other_policies_stay_what_they_are(here: Path):
    assert registry.local("expert") == Path("expert")
    assert registry.local(Path("runs/tap")) == Path("runs/tap")
    assert not (here / "runs").exists()


def test_what_is_not_there(here: Path):
    with pytest.raises(CheckpointError, match=r"models:/tap/1 is not in the registry of sqlite.*It has no 'tap'"):
        registry.local("models:/tap/1")
    with tracking.start("sweep", here / "runs" / "sweep-1", {}) as tracked:
        put(trained(here / "runs" / "align-1"), tracked, 0.5)
        with pytest.raises(CheckpointError, match="a run of 'align' is needed here"):
            put(trained(here / "runs" / "pretrain-1", job="pretrain"), tracked, 0.5)
    with pytest.raises(CheckpointError, match=r"models:/tap/7 is not in .* It has versions 1 of 'tap'"):
        registry.local("models:/tap/7")
