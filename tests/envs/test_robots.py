"""Every embodiment does every task, and what a person makes it do by hand is the same in its own actions."""

from typing import Any

import numpy as np
import pytest

import envs
from envs.robots import ROBOTS
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig, Trajectory

BORROWED = [name for name, model in ROBOTS.items() if model.arm[0].data_arm]
JOINT_CONTROLLED = [name for name, model in ROBOTS.items() if model.control == "joints"]


class Replay:
    """A policy that repeats a trajectory's actions."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._action_TA = trajectory.action

    def reset(self, obs: Any, info: Any, seeds: Any) -> None:
        self._step = -1

    def act(self, obs: Any, info: Any) -> np.ndarray:
        self._step += 1
        return self._action_TA[None, min(self._step, len(self._action_TA) - 1)]


def demonstrate(config: EnvConfig, seed: int) -> Trajectory:
    robots = envs.make_ee_control(config, 1)
    done = rollout(robots, envs.make_expert(config, 1), env_seeds=[seed], policy_seeds=[seed], settle=5)
    robots.close()
    return done.trajectories[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        task if task == "stack_green_on_yellow" else pytest.param(task, marks=pytest.mark.long_proof)
        for task in envs.TASKS
    ],
)
@pytest.mark.parametrize("robot", BORROWED)
def test_the_expert_works_on_every_robot(robot: str, task: str) -> None:
    config = EnvConfig(robot=robot, task=task, render=False)
    assert [demonstrate(config, seed).entire.any() for seed in range(5)] == [True] * 5


@pytest.mark.parametrize("robot", JOINT_CONTROLLED)
def test_what_was_done_by_hand_is_the_same_in_joints(robot: str) -> None:
    config = EnvConfig(robot=robot, task="put_eggplant_in_basket", render=False)
    shown = demonstrate(config, 3)
    spec = envs.spec(config)
    assert shown.action.shape[1] == len(spec.action) == len(ROBOTS[robot].arm[0].joint) + 1
    assert (np.abs(shown.action) <= spec.action_high_A + 1e-6).all()
    robots = envs.make_vector(config, 1)
    again = rollout(robots, Replay(shown), env_seeds=[3], policy_seeds=[3], settle=5).trajectories[0]
    robots.close()
    assert again.entire.any()
    steps = min(len(shown), len(again))
    tool = slice([slot.name for slot in spec.state].index("ee_x"), None)
    np.testing.assert_allclose(again.state[:steps, tool], shown.state[:steps, tool], atol=5e-3)


@pytest.mark.parametrize("robot", JOINT_CONTROLLED)
def test_random_joints_keep_the_end_effector_above_the_table(robot: str) -> None:
    config = EnvConfig(robot=robot, render=False)
    robots = envs.make_vector(config, 1)
    done = rollout(robots, envs.random_policy(envs.spec(config)), env_seeds=[0], policy_seeds=[0]).trajectories[0]
    robots.close()
    names = [slot.name for slot in envs.spec(config).state]
    model, at = ROBOTS[robot].arm[0], names.index("ee_x")
    ee_pos_T3 = done.state[:, at : at + 3]
    assert (ee_pos_T3 > np.array(model.workspace_low_m) - 0.02).all()
    assert (ee_pos_T3 < np.array(model.workspace_high_m) + 0.02).all()
    assert np.abs(np.diff(ee_pos_T3, axis=0)).max() > 0.01, "it moves"


@pytest.mark.parametrize("robot", BORROWED)
def test_a_image_costs_little_more_than_the_widowx(robot: str) -> None:
    """Counted in triangles, which is what TinyRenderer pays for: a box has 12, a light shape at most 92."""
    from envs.kinematics.urdf import urdf_of

    triangles = sum(mesh.read_text().count("\nf ") for mesh in urdf_of(ROBOTS[robot].arm[0]).parent.glob("*.obj"))
    assert 100 < triangles < 900
