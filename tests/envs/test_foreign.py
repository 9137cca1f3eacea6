"""Environments behind an adapter: a made-up one with worked-out numbers, and three that nobody here wrote."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.foreign.adapter import Adapter, Numbers, read_adapter
from envs.foreign.env import ForeignEnv
from envs.worlds import World, world_of
from tap_ray.dataset.crop_files import missing_blocks
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.layout import CONTACT
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.record import header_of
from tap_ray.errors import ConfigError, DataError, SpecError
from tap_ray.play.collect import CollectPlan, collect
from tap_ray.play.report import read, summarize
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig
from tests.slider import write_adapter

ROOT = Path(__file__).parents[2]
DIGEST = "1d66a70d32"
"""Of the slider's adapter, since before an adapter could name several cameras."""
SCENE = EnvConfig(robot="slider", sim="foreign", image_size=10, max_steps=6, robot_mask=True)


def world(env: str) -> World:
    return world_of(env, "widowx", "pybullet")


def slider(folder: Path, *, ee_control: bool = False) -> ForeignEnv:
    return ForeignEnv(read_adapter(write_adapter(folder)), SCENE, ee_control=ee_control)


def test_state_and_action_in_our_units_and_frame(tmp_path: Path) -> None:
    """The origin is taken off, fingers at 30 of 10 .. 30 are open, and a motion is shared out among two steps."""
    env = slider(tmp_path)
    assert [slot.name for slot in env.adapter.spec.action] == ["dx", "dy", "dz", "gripper"]
    obs, info = env.reset(seed=3)
    y = float(obs["state"][1])
    np.testing.assert_allclose(obs["state"], [0.3, y, 0.1, np.sqrt(0.5), 0, np.sqrt(0.5), 0, 1.0], atol=1e-6)
    assert info["action"].tolist() == [0, 0, 0, 1]
    obs, reward, terminated, truncated, info = env.step(np.array([0.02, -0.01, 0.07, 0.0], np.float32))
    np.testing.assert_allclose(obs["state"][:3], [0.32, y - 0.01, 0.15], atol=1e-6)  # 0.07 m is clipped to 0.05
    assert obs["state"][7] == pytest.approx(0.5)  # gripper 0: half way
    np.testing.assert_allclose(info["action"], [0.02, -0.01, 0.05, 0.0], atol=1e-7)
    assert info["num_clipped"] == 1
    assert (reward, terminated, truncated) == (2.0, False, False)
    assert info["contact"] is True
    assert info["instruction"] == "go left"


def test_image_and_mask_are_the_middle_square(tmp_path: Path) -> None:
    obs, info = slider(tmp_path).reset(seed=0)
    assert obs["rgb"].shape == (10, 10, 3)
    assert (obs["rgb"] == 200).all()
    assert (info["robot_mask"][:5] == 255).all()
    assert (info["robot_mask"][5:] == 0).all()


def test_two_cameras_by_any_names(tmp_path: Path) -> None:
    """The same image twice, once as the first camera and once behind it; one camera's adapter keeps its digest."""
    file = write_adapter(tmp_path, camera="cameras: {base: camera, hand: camera}")
    there = world(file)
    scene = there.scene(EnvConfig(image_size=10))
    assert scene.cameras == there.spec(scene).cameras == ("base", "hand")
    robots = there.make_vector(scene, 2)
    obs, _ = robots.reset(seed=[0, 1])
    robots.close()
    assert obs["extra_rgb"].shape == (2, 1, 10, 10, 3)
    assert (obs["extra_rgb"] == 200).all()
    with pytest.raises(ConfigError, match=r"names the cameras base, hand; got --cameras main wrist\. Omit --cameras"):
        there.scene(EnvConfig(cameras=("main", "wrist")))
    with pytest.raises(ConfigError, match=r"has both 'camera' \(for a single camera\) and 'cameras'"):
        replace(read_adapter(file), camera="render")
    one = read_adapter(write_adapter(tmp_path))
    assert (one.digest, "cameras" in one.to_json()) == (DIGEST, False)


def test_actions_of_the_end_effector_lose_what_it_has_not(tmp_path: Path) -> None:
    env = slider(tmp_path, ee_control=True)
    obs, _ = env.reset(seed=0)
    later, _, _, _, info = env.step(np.array([0.01, 0, 0, 0.2, 0.2, 0.2, -1], np.float32))
    np.testing.assert_allclose(later["state"][:3] - obs["state"][:3], [0.01, 0, 0], atol=1e-6)
    np.testing.assert_allclose(info["ee_action"], [0.01, 0, 0, 0, 0, 0, -1], atol=1e-7)
    np.testing.assert_allclose(info["action"], [0.01, 0, 0, -1], atol=1e-7)


def test_it_stands_still_once_it_has_ended_and_lasts_as_long_as_ours(tmp_path: Path) -> None:
    """0.04 m a step towards y 0.2 m, from 0 .. 0.1: the time limit of three steps of its own does not count."""
    there = world(write_adapter(tmp_path))
    robots = there.make_ee_control(replace(SCENE, max_steps=8), 2)
    runs = rollout(robots, there.make_expert(SCENE, 2), env_seeds=[0, 1], policy_seeds=[0, 1]).trajectories
    robots.close()
    for run in runs:
        start = float(run.state[0, 1])
        needed = int(np.ceil((0.2 - start) / 0.04 - 0.51))  # it may end after half of a step
        assert len(run) == 8
        assert run.entire.tolist().index(True) in (needed - 1, needed)
        assert run.entire[-1]
        assert run.state[-1, 1] == pytest.approx(run.state[-2, 1])


def test_play_needs_what_the_adapter_states(tmp_path: Path) -> None:
    there = world(write_adapter(tmp_path))
    assert [line.split()[0] for line in there.missing_features] == ["projection", "objects"]
    plan = CollectPlan(env=there.scene(EnvConfig(image_size=10, max_steps=5, robot_mask=True)), explorer="waypoint")
    arms = there.spec(plan.env).arms
    [episode] = collect(plan, there.make_ee_control, there.sample_poses, arms=arms, num_episodes=1)
    assert episode.action.shape == (5, 4)
    assert episode.mask_png is not None
    assert episode.contact[1:].any()
    with pytest.raises(ConfigError) as error:
        there.require_explorers(("waypoint", "contact"))
    assert "has no objects (switched off: the explorers contact, curious and mixed, and labels of" in str(error.value)
    with pytest.raises(ConfigError, match=r"has no projection \(switched off: the explorer visual\)"):
        there.require_explorers(("visual",))


def test_the_calibration_is_that_of_the_middle_square(tmp_path: Path) -> None:
    """40 x 20 px become 10 x 10: the middle of the camera, 19.5 and 9.5, is the middle of the square, 4.5."""
    numbers = [100, 0, 0, -10, 0, 100, 0, 0, 0, 0, 0, 1]  # column 100 x - 10, row 100 y
    folder = write_adapter(tmp_path, robot_mask=f"robot_mask: mask\nprojection: {numbers}")
    assert read_adapter(folder).digest != DIGEST
    world(folder).require_explorers(("visual",))
    _, info = ForeignEnv(read_adapter(folder), SCENE, ee_control=True).reset(seed=0)
    np.testing.assert_allclose(info["camera"] @ [0.295, 0.095, 0.1, 1.0], [4.5, 4.5, 1.0])
    np.testing.assert_allclose(info["camera"] @ [0.315, 0.095, 0.1, 1.0], [5.5, 4.5, 1.0])
    for wrong, text in (
        ([1, 2, 3], "must be 12 finite numbers, the rows of a 3 x 4 matrix; got [1, 2, 3]"),
        (["5e2", *numbers[1:-1], "x"], "must be 12 finite numbers"),
        ([-number for number in numbers], "must be positive in the middle of the workspace"),
        ([0, 0, *numbers[2:]], "must not lie in the plane of the table"),
    ):
        with pytest.raises(ConfigError) as error:
            read_adapter(write_adapter(tmp_path, robot_mask=f"robot_mask: mask\nprojection: {wrong}"))
        assert text in str(error.value)


def test_contact_that_is_not_told_is_unknown_and_not_never(tmp_path: Path) -> None:
    """No column of zeros: what Stage 1 asks of contact is refused by name."""
    there = world(write_adapter(tmp_path, contact=""))
    plan = CollectPlan(env=there.scene(EnvConfig(image_size=10, max_steps=5, robot_mask=True)), explorer="waypoint")
    spec = there.spec(plan.env)
    [episode] = collect(plan, there.make_ee_control, there.sample_poses, arms=spec.arms, num_episodes=1)
    assert episode.contact.shape == (0,)
    assert "contact_rate" not in episode.meta
    header = header_of(plan, spec, **there.header_fields)
    with DatasetWriter(tmp_path / "data", header) as writer:
        writer.append(episode)
    dataset = open_dataset(tmp_path / "data")
    assert CONTACT not in dataset.info["features"]
    with pytest.raises(DataError, match=r"has no finger contact \(imported datasets have none\)"):
        missing_blocks(dataset, CROPS)
    [row] = summarize(read(dataset), spec.control_hz)
    assert row["contact_rate"] is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"success": "sucess: there"}, "slider.yaml: unknown field 'sucess'. Did you mean 'success'?"),
        ({"robot": ""}, "slider.yaml: missing 1 required keyword-only argument: 'robot'"),
        (
            {"env": "env: tests.slider:Glider"},
            "tests.slider:Glider cannot be created: AttributeError: module 'tests.slider'",
        ),
        ({"kwargs": "kwargs: {gaol_y: 1}"}, "Slider.__init__() got an unexpected keyword argument 'gaol_y'"),
        (
            {"camera": "camera: cam"},
            "The observations of tests.slider:Slider have no 'cam': at 'cam' there is hand, camera, mask.",
        ),
        (
            {"camera": "camera: mask"},
            "The camera 'mask' of tests.slider:Slider must give uint8 images of shape (Y, X, 3); got bool (20, 40).",
        ),
        ({"success": "success: done"}, "The info of tests.slider:Slider has no 'done'; it has there, moved."),
        (
            {"repeat": "repeat: 0"},
            "needs at least one entry in 'state' and in 'action', and 'repeat' must be at least 1",
        ),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said(changed: dict[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        world(write_adapter(tmp_path, **changed)).scene(EnvConfig(image_size=10))
    assert text in str(error.value)


def test_what_options_do_not_go_together(tmp_path: Path) -> None:
    file = write_adapter(tmp_path, success="partial: there", expert="")
    with pytest.raises(ConfigError, match="Omit --robot and --sim"):
        world_of(file, "panda", "pybullet")
    with pytest.raises(ConfigError, match="has only the task 'slide'; got --tasks push"):
        world_of(file, "widowx", "", ("push",))
    with pytest.raises(ConfigError, match=r"has no success .*; expert"):
        world(file).require_goal(("expert",))
    with pytest.raises(ConfigError, match="'standard' only; got 'viewpoint'"):
        world(file).scene(EnvConfig(scenario="viewpoint"))
    with pytest.raises(
        ConfigError, match="includes no adapter for 'CartPole-v1'; it has gymnasium_robotics:FetchPush-v4"
    ):
        world("CartPole-v1")
    with pytest.raises(ConfigError, match="The adapter file nowhere"):
        world("nowhere.yaml")
    with pytest.raises(ConfigError, match="'closed' and 'open' must both be given, and must differ"):
        Numbers(slots=("gripper",), closed=1.0, open=1.0)
    env = slider(tmp_path)
    env.reset(seed=0)
    with pytest.raises(SpecError, match="An action of slider must be 4 finite numbers"):
        env.step(np.zeros(7))


PYTHON = Adapter(
    env="tests.slider:Slider",
    robot="slider",
    state=(Numbers(slots=("ee_x",), column="hand.place", at=(0,)),),
    action=(Numbers(slots=("dx",), at=(1,)),),
    camera="camera",
)


def test_an_adapter_in_python() -> None:
    there = world("tests.envs.test_foreign:PYTHON")
    with pytest.raises(ConfigError, match="no slot ee_y, ee_z, ee_qw, ee_qx, ee_qy, ee_qz, dy, dz"):
        there.require_explorers(("waypoint",))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long_proof
def test_the_jobs_take_it(tmp_path: Path, mlflow_uri: str) -> None:
    file = write_adapter(tmp_path)
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}

    def job(verb: str, *flags: str) -> str:
        common = ["--env", file, "--image-size", "32", "--max-steps", "20", "--fleets", "1", "--out", tmp_path / verb]
        command = [sys.executable, "-m", f"jobs.{verb}", *common, *flags]
        completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    output = job("collect_play", "--explorer", "waypoint", "--episodes", "2")
    assert "The adapter has no objects (switched off: the explorers contact" in output
    assert "2 episodes, 40 frames" in output
    assert "2 episodes" in job("collect_demos", "--episodes", "2")
    assert "100" in job("evaluate", "--policy", "expert", "--episodes", "2")


HOW = (
    "is not installed: pip install --target DIR --no-deps gymnasium-robotics panda-gym 'mujoco<3.4' glfw PyOpenGL "
    "etils absl-py fsspec importlib_resources zipp pettingzoo, and put DIR on PYTHONPATH"
)


def there_is(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} {HOW}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "env",
    [
        pytest.param("gymnasium_robotics:FetchPush-v4", marks=there_is("gymnasium_robotics")),
        pytest.param("panda_gym:PandaPush-v3", marks=there_is("panda_gym")),
    ],
)
def test_the_expert_pushes_in_worlds_of_others(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    there = world(env)
    scene = there.scene(EnvConfig(image_size=48))
    robots = there.make_ee_control(replace(scene, render=False), 4)
    runs = rollout(robots, there.make_expert(scene, 4), env_seeds=range(4), policy_seeds=range(4)).trajectories
    robots.close()
    assert [bool(run.entire.any()) for run in runs] == [True] * 4
    plan = CollectPlan(env=replace(scene, max_steps=10), explorer="contact")
    arms = there.spec(scene).arms
    [episode] = collect(plan, there.make_ee_control, there.sample_poses, arms=arms, num_episodes=1)
    assert episode.action.shape == (10, 3)


@pytest.mark.slow
@pytest.mark.maniskill
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("mani_skill") is None, reason="pip install mani-skill (Linux)")
def test_a_panda_of_maniskill_goes_where_it_is_told() -> None:
    """Its tool points down in our frame, and three steps of 3 cm to the left are nearly 9 cm."""
    there = world("mani_skill.envs:PickCube-v1")
    scene = EnvConfig(image_size=48)  # `there.scene` would render once more, which takes 10 s to begin with
    robots = there.make_ee_control(scene, 1)
    obs, _ = robots.reset(seed=[0])
    action = np.array([[0, 0.03, 0, 0, 0, 0, 1]], np.float32)
    later = obs
    for _ in range(3):
        later, *_ = robots.step(action)
    robots.close()
    names = [slot.name for slot in there.spec(scene).state]
    pose = obs["state"][0, names.index("ee_x") :]
    np.testing.assert_allclose(pose[3:], [np.sqrt(0.5), 0, np.sqrt(0.5), 0], atol=0.05)
    moved_m = later["state"][0, names.index("ee_y")] - pose[1]
    assert 0.06 < moved_m < 0.1
    assert obs["rgb"][0].std() > 10
