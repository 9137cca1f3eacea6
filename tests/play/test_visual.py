"""The explorer that finds objects in its camera's image: on real images of PyBullet, and on made-up ones."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pybullet
import pytest

import envs
from envs.bullet.camera import RenderConfig, projection_of, render_image
from envs.kinematics.reachable import sample_poses
from tap_ray.errors import ConfigError, SpecError
from tap_ray.play.collect import CollectPlan, collect
from tap_ray.play.motion import MotionConfig
from tap_ray.play.settings import PlayJobConfig, plan_of
from tap_ray.play.visual import VisibleObjects, VisualConfig, on_plane
from tap_ray.types import FIRST_OBJECT, EnvConfig, RandomizeConfig
from tests.made_camera import FROM_ABOVE

SCENE = EnvConfig(robot_mask=True, max_steps=20)


def project(camera_34, point_3):
    column, row, w = camera_34 @ [*point_3, 1.0]
    assert w > 0
    return np.array([row / w, column / w])


def begin(config: EnvConfig, seed: int):
    """Observation and info of the first step, not batched."""
    env = envs.make_ee_control(config, 1)
    try:
        obs, info = env.reset(seed=[seed])
    finally:
        env.close()
    return {key: value[0] for key, value in obs.items()}, {key: value[0] for key, value in info.items()}


def test_the_calibration_is_right_to_a_tenth_of_a_pixel():
    """The mean pixel of a ball is where its center is projected, on average over the table."""
    config, client = RenderConfig(), pybullet.connect(pybullet.DIRECT)
    try:
        shape = pybullet.createVisualShape(pybullet.GEOM_SPHERE, radius=0.02, physicsClientId=client)
        ball = pybullet.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=client)
        off = []
        for point in np.random.default_rng(0).uniform((0.2, -0.15, 0.0), (0.4, 0.15, 0.1), (60, 3)):
            pybullet.resetBasePositionAndOrientation(ball, point, (0, 0, 0, 1), physicsClientId=client)
            pixels = np.argwhere(render_image(client, config, 96, mask=True).body == ball)
            off.append(pixels.mean(0) - project(projection_of(config, 96), point))
    finally:
        pybullet.disconnect(client)
    assert np.abs(np.mean(off, axis=0)).max() < 0.1


@pytest.mark.parametrize("randomize", [None, RandomizeConfig()], ids=["standard", "randomized"])
def test_the_calibration_is_that_of_the_image(randomize):
    """Each object's center is projected onto a pixel that shows that object, unless something hides it."""
    shown = checked = 0
    for seed in range(8):
        _, info = begin(replace(SCENE, segmentation=True, randomize=randomize), seed)
        for slot, (name, pose) in enumerate(zip(info["object_name"].split(","), info["object_pose"], strict=True)):
            whose = info["segmentation"]
            row, column = np.rint(project(info["camera"], pose[:3])).astype(int)
            inside = 0 <= row < 96 and 0 <= column < 96
            if not name or name == "basket" or not inside or whose[row, column] not in (0, FIRST_OBJECT + slot):
                continue  # hollow, out of the image, or behind another body
            checked += 1
            shown += whose[row, column] == FIRST_OBJECT + slot
    assert checked > 8
    assert shown == checked


def test_a_pixel_is_where_the_plane_is_seen():
    _, info = begin(SCENE, 0)
    for point in ((0.2, -0.1, 0.03), (0.4, 0.2, 0.03), (0.3, 0.0, 0.0)):
        pixel = project(info["camera"], point)
        np.testing.assert_allclose(on_plane(info["camera"], pixel, point[2]), point[:2], atol=1e-9)
    assert np.isnan(on_plane(info["camera"], np.array([-500.0, 48.0]), 0.0)).all(), "above the horizon"


def test_objects_that_are_seen_apart_are_found():
    """To 3 cm, at least nine of ten objects that lie apart in the image and that the arm does not hide."""
    errors = []
    for seed in range(32):
        obs, info = begin(SCENE, seed)
        finder = VisibleObjects(VisualConfig(), MotionConfig())
        finder.reset(obs, info)
        found = finder.poses(np.random.default_rng(seed))
        names = info["object_name"].split(",")
        there = {name: pose for name, pose in zip(names, info["object_pose"], strict=True) if name}
        pixel = {name: project(info["camera"], pose[:3]) for name, pose in there.items()}
        for name, pose in there.items():
            apart = [np.abs(pixel[other] - pixel[name]).max() for other in there if other != name]
            row, column = np.rint(pixel[name]).astype(int)
            hidden = info["robot_mask"][max(row - 8, 0) : row + 9, max(column - 8, 0) : column + 9].any()
            if min(apart, default=96) > 20 and not hidden and name not in ("basket", "cloth", "plate"):  # wide ones
                errors.append(min((np.linalg.norm(one[:2] - pose[:2]) for one in found), default=1.0))
    assert len(errors) > 15
    assert np.mean(np.array(errors) < 0.03) >= 0.9, errors


def seen(rgb, robot):
    return {"rgb": rgb}, {"camera": FROM_ABOVE, "robot_mask": np.where(robot, 255, 0).astype(np.uint8)}


def test_what_the_robot_hides_is_remembered():
    table = np.full((64, 64, 3), 180, np.uint8)
    table[28:33, 15:28] = (230, 120, 30)  # row 30, column 21: x .3, y .105, 13 cm along y, 5 cm along x
    nobody, arm = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    arm[20:40, 10:30] = True
    finder = VisibleObjects(VisualConfig(object_height_m=(0.02, 0.02)), MotionConfig())
    finder.reset(*seen(table, nobody))
    finder.watch(*seen(np.where(arm[..., None], np.uint8(20), table), arm))
    (pose,) = finder.poses(np.random.default_rng(0))
    np.testing.assert_allclose(pose[:3], [0.3, 0.105, 0.02], atol=1e-6)
    assert abs(2 * np.arctan2(pose[6], pose[3])) == pytest.approx(np.pi / 2)  # its long side lies along y
    bare = np.full((64, 64, 3), 180, np.uint8)
    finder.watch(*seen(bare, nobody))
    assert finder.poses(np.random.default_rng(0)) == [], "seen to be gone"
    finder.reset(*seen(np.where(arm[..., None], np.uint8(20), table), arm))
    assert finder.poses(np.random.default_rng(0)) == [], "never seen in this episode"


def test_the_grain_of_a_table_is_not_an_object():
    grain = np.random.default_rng(0).uniform(120, 220, (64, 64, 1)).repeat(3, axis=2).astype(np.uint8)
    finder = VisibleObjects(VisualConfig(), MotionConfig())
    finder.reset(*seen(grain, np.zeros((64, 64), bool)))
    assert finder.poses(np.random.default_rng(0)) == []
    thing = grain.copy()
    thing[28:33, 19:24] = (30, 60, 30)
    finder.watch(*seen(thing, np.zeros((64, 64), bool)))
    (pose,) = finder.poses(np.random.default_rng(0))
    np.testing.assert_allclose(pose[:2], [0.3, 0.105], atol=1e-6)


def plan(explorer: str) -> CollectPlan:
    return plan_of(PlayJobConfig(explorer=explorer, max_steps=20), control_lag=1.0)


class Misleading(gym.vector.VectorWrapper):
    """Says that the objects are elsewhere, which changes nothing else."""

    def reset(self, **kwargs):
        return self.mislead(*self.env.reset(**kwargs))

    def step(self, actions):
        *rest, info = self.env.step(actions)
        return *rest, *self.mislead(info)

    @staticmethod
    def mislead(*values):
        *rest, info = values
        return *rest, {**info, "object_pose": np.roll(info["object_pose"], 1, axis=1)}


def test_it_reads_no_object_pose():
    """The same play, to the bit, whatever the environment says about the poses; "contact" plays otherwise then."""

    def played(explorer, make_vector):
        arms = envs.spec(plan(explorer).env).arms
        return next(iter(collect(plan(explorer), make_vector, sample_poses, arms=arms, num_episodes=1)))

    def misled(config, num_robots):
        return Misleading(envs.make_ee_control(config, num_robots))

    one, other = played("visual", envs.make_ee_control), played("visual", misled)
    np.testing.assert_array_equal(one.action, other.action)
    assert not np.array_equal(one.object_pose, other.object_pose)
    assert not np.array_equal(played("contact", envs.make_ee_control).action, played("contact", misled).action)


def test_it_says_what_an_environment_lacks():
    obs, info = seen(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), bool))
    finder = VisibleObjects(VisualConfig(), MotionConfig())
    with pytest.raises(SpecError, match=r"needs camera in info .* which this environment does not give"):
        finder.reset(obs, {"robot_mask": info["robot_mask"]})
    with pytest.raises(SpecError, match="needs robot_mask in info"):
        finder.reset(obs, {"camera": FROM_ABOVE})


def test_it_needs_masks_and_says_so_before_anything_starts():
    with pytest.raises(ConfigError, match=r"The explorer visual needs the robot's mask, .* Omit --no-robot-mask"):
        plan_of(PlayJobConfig(explorer="visual", robot_mask=False), control_lag=1.0)


def test_an_object_of_few_pixels_has_a_pose():
    table = np.full((64, 64, 3), 180, np.uint8)
    table[30, 21:23] = (230, 120, 30)
    finder = VisibleObjects(VisualConfig(min_blob_px=1), MotionConfig())
    finder.reset(*seen(table, np.zeros((64, 64), bool)))
    (pose,) = finder.poses(np.random.default_rng(0))
    assert np.isfinite(pose).all()
    table[30, 22] = 180
    finder.watch(*seen(table, np.zeros((64, 64), bool)))
    assert finder.poses(np.random.default_rng(0)) == []


def test_only_plans_that_use_it_state_its_constants():
    assert "visual" not in plan("contact").to_json()["explorers"]
    assert "visual" not in plan("mixed").to_json()["explorers"]["mixed"]
    assert plan("visual").to_json()["explorers"]["visual"]["min_blob_px"] == 12
