"""A robot with two arms: it plays, Stage 1 learns from that with the usual options, and its features are probed."""

from pathlib import Path

import pytest

import envs
from envs.kinematics.reachable import sample_poses
from jobs import probe
from tap_ray import runs
from tap_ray.dataset import crop_files
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.models.reach import NUM_REACH
from tap_ray.play.collect import CollectPlan, collect
from tap_ray.play.explorers import ExplorerConfig
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.pretrain.from_play import ObjectiveConfig, from_dataset
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.types import EnvConfig
from tests.small import SMALL

ENV = EnvConfig(robot="widowx_pair", image_size=48, max_steps=30, robot_mask=True)
PLAN = CollectPlan(env=ENV, explorer="contact", explorers=ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300)))


def play(path: Path) -> DatasetInfo:
    """8 episodes that seek contact, with their crops."""
    spec = envs.spec(ENV)
    header = DatasetHeader(
        spec=spec, plan=PLAN.to_json(), image_size=(48, 48), num_objects=envs.NUM_SLOTS, robot_mask=True
    )
    with DatasetWriter(path, header) as writer:
        for episode in collect(PLAN, envs.make_ee_control, sample_poses, arms=spec.arms, num_episodes=8, num_robots=4):
            writer.append(episode)
    dataset = open_dataset(path)
    for block in crop_files.missing_blocks(dataset, CROPS):
        crop_files.cut_block(dataset, CROPS, block)
    return dataset


@pytest.mark.slow
def test_two_arms_from_play_to_a_probe(tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = play(tmp_path / "play")
    config = ObjectiveConfig()
    windows = config.windows(WindowConfig(batch_size=16, holdout_every=4))
    stage = from_dataset(dataset, windows, policy=SMALL, config=config, seed=0)
    assert stage.model.network.config.num_reach == 2 * NUM_REACH
    fit(stage.model.network, iterate(dataset, windows, seed=0), stage.objective, TrainConfig(steps=4, batch_size=16))
    metrics = stage.validate()
    for arm in ("left", "right"):
        assert {f"play/r2_{arm}_dx", f"play/r2_{arm}_move_x", f"play/r2_{arm}_contact_x"} <= set(metrics)
    assert {"play/r2_mean", "play/r2_contact", "play/gripper_accuracy"} <= set(metrics)

    run = runs.open_run(tmp_path / "moves", job="pretrain", config={"steps": 4})
    stage.save(run.path)
    runs.finish(run)
    config = probe.ProbeConfig(policy=run.path, data=dataset.path, episodes=0, out=tmp_path / "probe")
    scores = runs.read_json(probe.main(config) / "probe.json")["trained"]
    assert {"x", "y", "z"} <= set(scores["left_gripper"])
    assert {"x", "y", "z"} <= set(scores["right_gripper"])
    assert "right_gripper" in capsys.readouterr().out
