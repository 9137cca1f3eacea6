"""The scripted expert solves every task with its noise on; random noise solves none."""

import numpy as np
import pytest

import envs
from envs.experts import ExpertConfig
from tap_ray.rollout import rollout
from tap_ray.types import EnvConfig, Policy, Trajectory


def run(config: EnvConfig, policy: Policy, seeds: list[int], robots: int) -> list[Trajectory]:
    fleet = envs.make_vector(config, robots)
    done: list[Trajectory] = []
    for start in range(0, len(seeds), robots):
        part = seeds[start : start + robots]
        done += rollout(fleet, policy, env_seeds=part, policy_seeds=part).trajectories
    fleet.close()
    return done


@pytest.mark.parametrize("task", envs.TASKS)
def test_expert_solves_the_task(task: str) -> None:
    config = EnvConfig(task=task, render=False)
    done = run(config, envs.make_expert(config, 4), [1000, 1001, 1002, 1003], 4)
    assert sum(bool(one.entire[-1]) for one in done) >= 3
    for one in done:
        assert one.partial.any()
        assert np.linalg.norm(np.diff(one.state[:, 7:10], axis=0), axis=1).max() < 0.08
        assert one.num_clipped <= 5


def test_noise_is_a_choice_and_follows_the_seed() -> None:
    config = EnvConfig(task="push_pumpkin_left", render=False, max_steps=10)
    calm = ExpertConfig(noise_m=0.0, noise_rad=0.0, push_probability=0.0)

    def actions(expert_config: ExpertConfig, seed: int) -> np.ndarray:
        fleet = envs.make_vector(config, 1)
        expert = envs.make_expert(config, 1, expert_config)
        out = rollout(fleet, expert, env_seeds=[0], policy_seeds=[seed]).trajectories[0].action
        fleet.close()
        return out

    assert np.array_equal(actions(calm, 1), actions(calm, 2))
    assert np.array_equal(actions(ExpertConfig(), 1), actions(ExpertConfig(), 1))
    assert not np.array_equal(actions(ExpertConfig(), 1), actions(ExpertConfig(), 2))


def test_random_solves_nothing() -> None:
    config = EnvConfig(task="stack_green_on_yellow", render=False)
    done = run(config, envs.random_policy(envs.spec(config)), [0, 1], 2)
    assert not any(one.entire.any() for one in done)
    spread = np.concatenate([one.action for one in done])
    assert spread.min(0) == pytest.approx(envs.spec(config).action_low_A, rel=0.15)
    assert spread.max(0) == pytest.approx(envs.spec(config).action_high_A, rel=0.15)


@pytest.mark.slow
@pytest.mark.long_proof
@pytest.mark.parametrize("task", envs.TASKS)
def test_expert_reaches_95_of_100(task: str) -> None:
    config = EnvConfig(task=task, render=False)
    done = run(config, envs.make_expert(config, 10), list(range(100)), 10)
    assert sum(bool(one.entire.any()) for one in done) >= 95
    assert sum(bool(one.entire[-1]) for one in done) >= 95
