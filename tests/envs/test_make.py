"""`envs.make` and its relatives: what they build and what they say when asked for something that is not there."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from tap_ray.errors import ConfigError
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig

UNKNOWN = [
    (EnvConfig(task="put_spoon_on_clth"), "Unknown task 'put_spoon_on_clth'. Did you mean 'put_spoon_on_cloth'?"),
    (EnvConfig(robot="widowy"), "Unknown robot 'widowy'. Did you mean 'widowx'?"),
    (EnvConfig(sim="pybulet"), "Unknown simulator 'pybulet'. Did you mean 'pybullet'?"),
    (EnvConfig(sim="maniskil"), "Did you mean 'maniskill'?"),
    (EnvConfig(scenario="viewpoints"), "Unknown scenario 'viewpoints'. Did you mean 'viewpoint'?"),
    (EnvConfig(image_size=0), "image_size must be at least 1; got 0"),
    (EnvConfig(max_steps=0), "max_steps must be at least 1; got 0"),
]


@pytest.mark.parametrize(("config", "text"), UNKNOWN)
def test_what_is_not_there_is_named_with_its_nearest(config: EnvConfig, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        envs.make(config)
    assert text in str(error.value)
    with pytest.raises(ConfigError):
        envs.make_vector(config, 1)


def test_a_fleet_has_robots() -> None:
    with pytest.raises(ConfigError, match="at least 1 robot; got 0"):
        envs.make_vector(EnvConfig(), 0)


def test_play_has_no_expert() -> None:
    with pytest.raises(ConfigError, match="There is no expert for task 'play'"):
        envs.make_expert(EnvConfig(task="play"), 1)


def test_spec_starts_no_simulator() -> None:
    code = (
        "import sys, envs; from tap_ray.types import EnvConfig; s = envs.spec(EnvConfig());"
        "assert 'pybullet' not in sys.modules and 'torch' not in sys.modules; print(len(s.action), len(s.state))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "7 14"


@pytest.mark.parametrize("task", [*envs.TASKS, envs.PLAY])
def test_gymnasium_checker_passes(task: str) -> None:
    env = envs.make(EnvConfig(task=task, image_size=32))
    check_env(env, skip_render_check=True)  # that part needs gym.make; test_tabletop.py looks at render() itself
    assert env.reset(seed=0)[0]["rgb"].shape == (32, 32, 3)
    env.close()
    env.close()


def test_vector_infos_stack() -> None:
    robots = envs.make_vector(EnvConfig(image_size=32, max_steps=3, robot_mask=True), 2)
    assert robots.metadata["autoreset_mode"] == gym.vector.AutoresetMode.DISABLED
    policy = envs.random_policy(envs.spec(EnvConfig()))
    result = rollout(robots, policy, env_seeds=[1, 2], policy_seeds=[3, 4])
    robots.close()
    for trajectory in result.trajectories:
        assert len(trajectory) == 3
        assert trajectory.rgb.shape == (3, 32, 32, 3)
        assert trajectory.state.shape == (3, 14)
        assert trajectory.object_pose.shape == (3, 4, 7)
        assert trajectory.robot_mask is not None
        assert 50 < np.count_nonzero(trajectory.robot_mask[0]) < 32 * 32 / 2
        assert len(trajectory.object_name) == 4
        assert trajectory.instruction == ""
    assert not np.array_equal(result.trajectories[0].rgb, result.trajectories[1].rgb)


def test_every_simulator_says_what_it_has() -> None:
    """By the same properties; ManiSkill's end effector lags twice as far behind as PyBullet's (measured)."""
    assert {name: len(sim.tasks) for name, sim in envs.SIMULATORS.items()} == {
        "pybullet": 5,
        "maniskill": 4,
        "maniskill_gpu": 4,
    }
    assert [envs.control_lag_of(sim) for sim in envs.SIMULATORS] == [1.0, 2.0, 2.0]
    assert [envs.needs_gpu(sim) for sim in envs.SIMULATORS] == [False, False, True]
    assert envs.version_of("pybullet") == "3"
    for sim in envs.SIMULATORS.values():
        assert set(sim.tasks) <= set(envs.TASKS)
        assert set(sim.robots) <= set(envs.ROBOTS)
        assert all(len(sim.expert_scene(task).object) >= 8 for task in (*sim.tasks, envs.PLAY))


def test_no_other_simulator_is_loaded() -> None:
    code = (
        "import sys, envs; from tap_ray.types import EnvConfig; envs.make(EnvConfig(render=False)).close();"
        "print([name for name in ('mani_skill', 'sapien', 'torch') if name in sys.modules])"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"
