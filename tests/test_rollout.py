"""The loop on a robot whose path is known in closed form (tests/line_world.py)."""

import numpy as np
import pytest

from tap_ray.rollout import PerRobot, rollout
from tap_ray.types import EnvConfig
from tests.line_world import Forward, line_robots

FIVE = EnvConfig(task="line", max_steps=5)


def test_what_a_trajectory_holds():
    env, policy = line_robots(2, FIVE), Forward(0.25)
    done = rollout(env, policy, env_seeds=[4, 7], policy_seeds=[40, 70])
    assert policy.seeds == [40, 70]
    assert done.num_calls == 5
    assert 0 < done.policy_seconds < done.seconds
    near, far = done.trajectories
    # Entry t is what was seen before action t: x = 0, 1/4, ... and the image's value t.
    assert near.state.tolist() == [[0.0], [0.25], [0.5], [0.75], [1.0]]
    assert near.rgb[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert near.object_pose.shape == (5, 1, 7)
    assert near.contact.tolist() == [False, True, True, True, True]
    # partial and entire are those after action t: x = 1/4, 2/4, 3/4, 1, 5/4.
    assert near.partial.tolist() == [False, True, True, True, True]
    assert near.entire.tolist() == [False, False, False, True, False]
    assert near.instruction == "go to one (line)"
    assert near.object_name == ("point",)
    assert near.robot_mask is None
    assert far.state[0, 0] == -10
    assert not far.partial.any()
    assert (near.rgb.dtype, near.state.dtype, near.action.dtype) == (np.uint8, np.float32, np.float32)


def test_actions_are_stored_as_executed():
    done = rollout(line_robots(1, FIVE), Forward(0.5), env_seeds=[0], policy_seeds=[0])
    assert done.trajectories[0].action.tolist() == [[0.25]] * 5
    assert done.trajectories[0].num_clipped == 5


def test_robots_can_roll_out_again():
    env = line_robots(2, FIVE)
    first = rollout(env, Forward(), env_seeds=[0, 1], policy_seeds=[0, 0])
    again = rollout(env, Forward(), env_seeds=[0, 1], policy_seeds=[0, 0])
    for a, b in zip(first.trajectories, again.trajectories, strict=True):
        np.testing.assert_array_equal(a.state, b.state)
        np.testing.assert_array_equal(a.rgb, b.rgb)


class StopAtOne:
    """Walks to 1 and stays."""

    def reset(self, obs, info, seeds):
        pass

    def act(self, obs, info):
        return np.where(obs["state"] < 0.99, 0.25, 0.0).astype(np.float32)


@pytest.mark.parametrize(("settle", "steps"), [(None, 20), (1, 4), (3, 6)])
def test_settle_ends_the_rollout_early(settle, steps):
    env = line_robots(2, EnvConfig(max_steps=20))
    done = rollout(env, StopAtOne(), env_seeds=[0, 2], policy_seeds=[0, 0], settle=settle)
    assert [len(t) for t in done.trajectories] == [steps, steps]


def test_settle_waits_for_every_robot():
    env = line_robots(2, EnvConfig(max_steps=20))
    done = rollout(env, StopAtOne(), env_seeds=[0, 1], policy_seeds=[0, 0], settle=1)
    assert len(done.trajectories[0]) == 20


class Noise:
    """An explorer: remembers its first view, then acts by its own generator."""

    def reset(self, obs, info, rng):
        self.start, self.rng, self.instruction = float(obs["state"][0]), rng, info["instruction"]

    def act(self, obs, info):
        return self.rng.uniform(-0.2, 0.2, 1).astype(np.float32)


def test_explorers_see_their_own_robot_and_draw_their_own_numbers():
    explorers = [Noise(), Noise()]
    done = rollout(line_robots(2, FIVE), PerRobot(explorers), env_seeds=[0, 1], policy_seeds=[5, 6])
    assert [e.start for e in explorers] == [0.0, -10.0]
    alone = rollout(line_robots(1, FIVE), PerRobot([Noise()]), env_seeds=[1], policy_seeds=[6])
    np.testing.assert_array_equal(done.trajectories[1].action, alone.trajectories[0].action)


def test_as_many_explorers_as_robots():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        rollout(line_robots(2, FIVE), PerRobot([Noise()]), env_seeds=[0, 1], policy_seeds=[5, 6])


def test_an_action_that_is_no_number_is_not_executed():
    with pytest.raises(FloatingPointError, match="the action of step 0 is NaN or infinite"):
        rollout(line_robots(1, FIVE), Forward(float("nan")), env_seeds=[0], policy_seeds=[0])
