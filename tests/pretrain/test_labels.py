"""jobs.label: an inverse-dynamics run writes the actions that it sees into a video."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import label
from tap_ray import metrics, runs
from tap_ray.dataset.layout import ACTION
from tap_ray.dataset.reader import open_dataset, read_episode
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.verify import verify
from tap_ray.dataset.windows import WindowConfig
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import ConfigError, DataError
from tap_ray.inspect.dataset import report
from tap_ray.inspect.settings import InspectConfig
from tap_ray.pretrain import labels
from tap_ray.pretrain.from_play import ObjectiveConfig, from_dataset
from tap_ray.pretrain.settings import LabelConfig
from tap_ray.specs import EE_DELTA_ACTION
from tap_ray.training.loop import TrainConfig, fit
from tests.digests import digests
from tests.inspect.flawed import NUM, T, write
from tests.made_data import write_made_dataset
from tests.small import SMALL, VISION

OBJECTIVE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
SEES = replace(SMALL, chunk=1, vision=replace(VISION, widths=(16, 24)))  # cells of 4 px
WINDOWS = OBJECTIVE.windows(WindowConfig(batch_size=32, holdout_every=3, k_max=1))


def trained(data: Path, folder: Path, steps: int, config: ObjectiveConfig = OBJECTIVE) -> Path:
    """A finished run folder of Stage 1, made without Ray."""
    torch.set_num_threads(1)
    dataset, windows = open_dataset(data), config.windows(replace(WINDOWS, horizon=1))
    stage = from_dataset(dataset, windows, policy=SEES, config=config, seed=0)
    if steps:
        train = TrainConfig(steps=steps, batch_size=32, validate_every=0, lr=2e-3)
        fit(stage.model.network, iterate(dataset, windows, seed=0), stage.objective, train)
    made_by = {"data": str(data), "windows": {"holdout_every": windows.holdout_every}}
    run = runs.open_run(folder, job="pretrain", config=made_by, parents={"data": data})
    stage.save(folder)
    runs.finish(run)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 episodes of 40 steps, a square that moves as the actions say; every third is held out: 2, 5, 8, 11."""
    return write(tmp_path_factory.mktemp("data") / "play")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """Fresh weights: what is tested with it does not depend on what it has learned."""
    return trained(data, tmp_path_factory.mktemp("run") / "idm", 0)


@pytest.fixture(scope="module")
def video(data, tmp_path_factory) -> Path:
    """The same images and nothing else: no actions, no states."""
    dataset, path = open_dataset(data), tmp_path_factory.mktemp("video") / "video"
    nothing = {"contact": False, "num_objects": 0}
    header = replace(
        dataset.header, spec=replace(dataset.spec, action=(), state=()), plan={"kind": "import"}, **nothing
    )
    with DatasetWriter(path, header) as writer:
        for index in range(NUM):
            episode = read_episode(dataset, index)
            empty = np.zeros((T, 0), np.float32)
            bare = {"state": empty, "action": empty, "contact": np.zeros(0, bool)}
            stats = {"image_stats": labels.image_stats(labels.decode_frames(episode.image_jpeg))}
            pose = {"object_pose": np.zeros((T, 0, 7), np.float32)}
            writer.append(replace(episode, **bare, **stats, **pose))
    return path


def test_labels_of_a_video(run, video, tmp_path, capsys):
    out = label.main(LabelConfig(policy=run, data=video, out=tmp_path / "labeled"))
    made = open_dataset(out)
    assert [rule for rule in verify(out) if rule.problems] == []
    assert made.lengths.tolist() == [T - 1] * NUM
    assert made.spec.action == EE_DELTA_ACTION
    info = json.loads((out / "meta/info.json").read_text())
    run_hash = json.loads((run / "manifest.json").read_text())["hash"]
    assert info["pseudo_labels"] == {"run": run_hash, "source": open_dataset(video).header.to_json()["hash"]}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["job"], manifest["pseudo_labels"]["path"]) == ("label", str(run))
    action = read_episode(made, 0).action
    assert set(np.unique(action[:, 6])) <= {-1.0, 1.0}
    assert (np.abs(action) <= made.spec.action_high_A).all()
    output = capsys.readouterr().out
    assert f"12 episodes, {NUM * (T - 1)} actions were predicted by run {run_hash}." in output
    assert output.splitlines()[-2].startswith(
        "The video has no actions, so the error of the predicted ones is unknown. On the held-out play"
    )


def test_stopped_and_grown_it_is_the_same(run, data, tmp_path):
    whole = label.main(LabelConfig(policy=run, data=data, out=tmp_path / "whole"))
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "meta/episodes/chunk-000/file-002.parquet").unlink()  # as a kill leaves it: the last file not committed
    label.main(LabelConfig(policy=run, data=data, out=part))
    job_files = ("manifest.json",)
    assert {n: d for n, d in digests(part).items() if n not in job_files} == {
        n: d for n, d in digests(whole).items() if n not in job_files
    }
    label.main(LabelConfig(policy=run, data=data, out=whole))
    assert len(open_dataset(whole)) == NUM


def test_the_error_is_that_of_held_out_episodes(run, data, tmp_path, capsys):
    """Of its own play the run has set aside every third episode; of a dataset that it has never seen, all count."""
    out = label.main(LabelConfig(policy=run, data=data, out=tmp_path / "labeled"))
    output = capsys.readouterr().out
    assert "Compared with the true actions of 4 episodes that the run was not trained on:" in output
    made, true = open_dataset(out), open_dataset(data)
    held = (2, 5, 8, 11)
    guess = np.concatenate([read_episode(made, n, [ACTION]).action for n in held])
    truth = np.concatenate([read_episode(true, n, [ACTION]).action[:-1] for n in held])
    right = float((np.sign(guess[:, 6]) == np.sign(truth[:, 6])).mean())
    assert f"gripper        {right:6.1%} correct" in output
    assert f"dx             R^2 {metrics.r_squared(guess, truth)[0]:6.2f}, mean error" in output
    other = write(tmp_path / "other", num=5)
    label.main(LabelConfig(policy=run, data=other, out=tmp_path / "others"))
    assert "true actions of 5 episodes" in capsys.readouterr().out


def test_what_does_not_belong_together(run, data, tmp_path):
    out = tmp_path / "out"
    dataset = open_dataset(data)
    other = tmp_path / "other"
    with DatasetWriter(other, replace(dataset.header, spec=replace(dataset.spec, robot="panda"))) as writer:
        episode = read_episode(dataset, 0)
        writer.append(replace(episode, image_stats=labels.image_stats(labels.decode_frames(episode.image_jpeg))))
    with pytest.raises(ConfigError, match=r"not of the same robot:\n  robot: .* has 'made', .* has 'panda'"):
        label.main(LabelConfig(policy=run, data=other, out=out))
    with pytest.raises(DataError, match="There is no dataset at"):
        label.main(LabelConfig(policy=run, data=tmp_path / "none", out=out))
    label.main(LabelConfig(policy=run, data=data, out=out))
    again = trained(write(tmp_path / "more", num=8), tmp_path / "again", 0)
    with pytest.raises(DataError, match=r"was made with another plan[\s\S]*pseudo_labels\.run"):
        label.main(LabelConfig(policy=again, data=data, out=out))


def test_a_video_is_not_trained_on_and_is_inspected(video):
    with pytest.raises(
        DataError, match=r"is a video without actions, so no policy can be trained on it\. Label it .* \(jobs\.label\)"
    ):
        from_dataset(open_dataset(video), WINDOWS, policy=SMALL, config=OBJECTIVE, seed=0)
    report.inspect(InspectConfig(data=video))
    found = json.loads((video / "inspection/report.json").read_text())
    kinds = {check["name"]: check["kind"] for check in found["checks"]}
    assert [name for name, kind in kinds.items() if kind == "not known"] == [
        "consistency",
        "gripper",
        "coverage",
        "contact",
    ]
    assert [name for name, kind in kinds.items() if kind in ("look at this", "not fit")] == []


@pytest.mark.slow
@pytest.mark.long_proof
def test_learned_labels_are_right_and_can_be_learned_from(tmp_path, capsys):
    """A square that moves by 1.2 px (0.9 to 1.5) to the left or right at a time: a run sees which, and another learns
    the same from its labels."""
    play = write_made_dataset(tmp_path / "play", num_episodes=48, tasks=("left", "right"))
    run = trained(play, tmp_path / "idm", 120)
    out = label.main(LabelConfig(policy=run, data=play, out=tmp_path / "labeled"))
    output = capsys.readouterr().out
    r2 = {line.split()[0]: float(line.split()[2].rstrip(",")) for line in output.splitlines() if " R^2 " in line}
    assert r2["dx"] > 0.5
    again = trained(out, tmp_path / "again", 120)
    label.main(LabelConfig(policy=again, data=play, out=tmp_path / "twice"))
    output = capsys.readouterr().out
    assert float(next(line.split()[2].rstrip(",") for line in output.splitlines() if line.startswith("  dx "))) > 0.5


def test_of_a_dataset_that_has_grown_the_held_out_episodes_are_known(data):
    """The run used the first six episodes, which are no longer all that there are."""
    parent = {"path": str(data), "hash": runs.hash_of(data, 6), "episodes": 6}
    manifest = {"parents": {"data": parent}, "made_by": {"windows": {"holdout_every": 3}}}
    assert labels.held_out(manifest, data, open_dataset(data)) == [2, 5, 8, 11]
    manifest["parents"]["data"] = {**parent, "hash": "other"}
    assert list(labels.held_out(manifest, data, open_dataset(data))) == list(range(NUM))
