"""Whose pixel it is: gripper, arm and objects, in the real simulator."""

from dataclasses import replace

import numpy as np
import pytest

import envs
from tap_ray.config import digest
from tap_ray.play.collect import CollectPlan
from tap_ray.play.demos import DemoPlan
from tap_ray.rollout import rollout
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER, EnvConfig

CARROT = EnvConfig(task="put_carrot_on_plate", image_size=96, segmentation=True, max_steps=3)


def begin(config: EnvConfig, seed: int = 0):
    env = envs.make(config)
    obs, info = env.reset(seed=seed)
    env.close()
    return obs["rgb"], info


def test_who_is_where():
    rgb, info = begin(CARROT)
    whose = info["segmentation"]
    assert (whose.shape, whose.dtype) == ((96, 96), np.uint8)
    assert set(np.unique(whose)) == {ELSEWHERE, ARM, GRIPPER, FIRST_OBJECT, FIRST_OBJECT + 1}
    color = {value: rgb[whose == value].astype(int).mean(0) for value in np.unique(whose)}
    red, _, blue = color[FIRST_OBJECT]
    assert red - blue > 100  # the carrot is orange
    assert np.ptp(color[FIRST_OBJECT + 1]) < 25  # the plate has no color
    assert color[FIRST_OBJECT + 1].mean() > color[ARM].mean() + 60  # and is light, the arm dark
    assert (whose == GRIPPER).sum() < (whose == ARM).sum()


def test_the_fingers_are_of_the_gripper():
    rgb, info = begin(replace(CARROT, image_size=192))
    left = (np.abs(rgb.astype(int) - (242, 51, 191)).sum(-1) < 90) & (info["segmentation"] != ELSEWHERE)
    assert left.sum() > 5  # magenta, that no object and no other link has
    assert (info["segmentation"][left] == GRIPPER).all()


def test_images_and_the_robot_mask_stay_as_they_are():
    bare, without = begin(replace(CARROT, segmentation=False, robot_mask=True))
    seen, with_it = begin(replace(CARROT, robot_mask=True))
    np.testing.assert_array_equal(bare, seen)
    np.testing.assert_array_equal(without["robot_mask"], with_it["robot_mask"])
    assert "segmentation" not in without
    robot = np.isin(with_it["segmentation"], (ARM, GRIPPER))
    assert (with_it["robot_mask"][robot] == 255).all()
    shadow = (with_it["robot_mask"] == 255) & ~robot
    assert (with_it["segmentation"][shadow] == ELSEWHERE).all()
    assert 0 < shadow.sum() < 200


@pytest.mark.parametrize("robot", envs.ROBOTS)
def test_every_robot_has_a_gripper_and_an_arm(robot: str):
    _, info = begin(replace(CARROT, robot=robot))
    values, counts = np.unique(info["segmentation"], return_counts=True)
    seen = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert 20 < seen[GRIPPER] < 96 * 96 / 4
    assert seen[ARM] > 20


def test_without_a_image_nobody_is_seen():
    _, info = begin(replace(CARROT, render=False))
    assert not info["segmentation"].any()


def test_a_trajectory_carries_it_only_when_asked():
    policy = envs.random_policy(envs.spec(CARROT))
    for segmentation in (True, False):
        robots = envs.make_vector(replace(CARROT, segmentation=segmentation, image_size=32), 2)
        done = rollout(robots, policy, env_seeds=[0, 1], policy_seeds=[0, 1])
        robots.close()
        for trajectory in done.trajectories:
            if segmentation:
                assert trajectory.segmentation is not None
                assert trajectory.segmentation.shape == (3, 32, 32)
                assert trajectory.segmentation.max() == FIRST_OBJECT + 1
            else:
                assert trajectory.segmentation is None


@pytest.mark.parametrize(
    "plan", [CollectPlan(env=EnvConfig(), explorer="mixed"), DemoPlan(tasks=("put_carrot_on_plate",))]
)
def test_it_does_not_name_a_data_set(plan: CollectPlan | DemoPlan):
    # Datasets from before there was this option are still the same plan's.
    assert "segmentation" not in plan.to_json()["env"]
    assert digest(replace(plan, env=EnvConfig(segmentation=True)).to_json()) == digest(plan.to_json())
