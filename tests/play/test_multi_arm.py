"""Several end effectors over one table keep apart, and every robot plays."""

import numpy as np
import pytest

import envs
from envs.robots import ROBOTS
from jobs.collect_play import fleet
from tap_ray.play.collect import CollectPlan, visits_of
from tap_ray.play.explorers import ExplorerConfig
from tap_ray.play.motion import MotionConfig
from tap_ray.play.multi_arm import GAP_M, MultiArmExplorer, split_workspace
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.types import EnvConfig

FAST = ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300))


def test_the_table_is_divided_from_left_to_right():
    whole = MotionConfig()
    assert split_workspace(whole, 1) == [whole]
    left, right = split_workspace(whole, 2)
    assert left.bounds_high_m[1] == whole.bounds_high_m[1]
    assert right.bounds_low_m[1] == pytest.approx(whole.bounds_low_m[1])
    assert left.bounds_low_m[1] - right.bounds_high_m[1] == pytest.approx(GAP_M)
    assert left.bounds_low_m[0] == right.bounds_low_m[0] == whole.bounds_low_m[0]


class Notes:
    """An explorer that keeps what it was shown, and moves by its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def reset(self, obs, info, rng):
        self.draw = rng.random()

    def act(self, obs, info):
        self.obs, self.info = obs, info
        return np.full(7, self.number, np.float32)


def test_each_arm_sees_its_own_motion_and_the_objects_near_it():
    notes = [Notes(0), Notes(1)]
    both = MultiArmExplorer(notes, split_workspace(MotionConfig(), 2))
    obs = {"state": np.arange(28.0), "rgb": np.zeros((4, 4, 3))}
    pose = np.zeros((3, 7))
    pose[:, 1] = [0.1, -0.1, 0.0]  # left, right, and in between
    info = {"ee_action": np.arange(14.0), "object_pose": pose, "object_name": "spoon,plate,carrot"}
    both.reset(obs, info, np.random.default_rng(0))
    assert both.act(obs, info).tolist() == [0] * 7 + [1] * 7
    assert notes[0].draw != notes[1].draw
    assert [note.obs["state"][0] for note in notes] == [0, 0]  # each reads its own arm's slots of it
    assert [note.info["ee_action"][0] for note in notes] == [0, 7]
    assert [note.info["object_name"] for note in notes] == ["spoon,,", ",plate,"]


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_plays(robot: str):
    env = EnvConfig(robot=robot, render=False, image_size=16)
    plan = CollectPlan(env=env, explorer="curious", explorers=FAST)
    [one] = fleet(plan, 1, None).run([3])
    [two] = fleet(plan, 1, None).run([3])
    assert one.episode is not None
    assert two.episode is not None
    np.testing.assert_array_equal(one.episode.action, two.episode.action)
    spec = envs.spec(env)
    assert one.episode.action.shape == (60, len(spec.action))
    assert (np.abs(one.episode.action) <= spec.action_high_A + 1e-6).all()
    ee_y = [i for i, slot in enumerate(spec.state) if slot.name.endswith("ee_y")]
    assert ee_y == [arm.ee_pos[1] for arm in spec.arms]
    y = one.episode.state[:, ee_y]
    assert (np.ptp(y, axis=0) > 0.03).all(), "every end effector moves"
    if len(ee_y) == 2:
        assert (y[:, 0] > y[:, 1] + 0.02).all(), "the left end effector stays left of the right one"
    assert visits_of(plan, one, arms=spec.arms)


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_touches_what_it_sees(robot: str):
    """Without --explorer, and so without object poses."""
    plan = CollectPlan(env=EnvConfig(robot=robot, robot_mask=True), explorers=FAST)
    played = [one.episode for one in fleet(plan, 2, None).run([0, 1])]
    assert {str(one.meta["explorer"]) for one in played if one} == {"visual"}
    assert all(one.contact.any() for one in played if one)
