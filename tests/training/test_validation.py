import numpy as np
import pytest

import envs
from tap_ray.dataset.norm_stats import norm_stats
from tap_ray.pretrain.from_play import ObjectiveConfig, build
from tap_ray.types import EnvConfig, Window
from tests.moving_square import SIZE
from tests.small import SMALL


def test_the_mean_of_a_robot_that_is_driven_by_its_joints():
    """It has no translation slots, so that nothing but its gripper would count."""
    spec = envs.spec(EnvConfig(robot="iiwa"))
    sizes = {"action": len(spec.action), "observation.state": len(spec.state)}
    norm = norm_stats({name: {"mean": np.zeros(n), "std": np.ones(n)} for name, n in sizes.items()}, spec)
    rng, num = np.random.default_rng(0), 32
    action = rng.uniform(spec.action_low_A, spec.action_high_A, (num, 1, len(spec.action))).astype(np.float32)
    window = Window(
        rgb=rng.integers(0, 256, (num, SIZE, SIZE, 3), np.uint8),
        goal_rgb=rng.integers(0, 256, (num, SIZE, SIZE, 3), np.uint8),
        k=np.ones(num, np.int64),
        state=np.zeros((num, len(spec.state)), np.float32),
        action=action,
        action_mask=np.ones((num, 1), bool),
        reach=None,
        reach_mask=None,
        task_index=np.zeros(num, np.int64),
    )
    inverse = ObjectiveConfig(next_object=0, inverse_dynamics=1)
    found = build(spec=spec, norm=norm, policy=SMALL, config=inverse, held_out=[window], seed=0).validate()
    joints = [found[f"play/r2_dlbr_iiwa_joint_{number}"] for number in range(1, 8)]
    assert found["play/r2_mean"] == pytest.approx(np.mean(joints))
