import numpy as np
import pytest

import envs
from envs.kinematics.reachable import sample_poses
from tap_ray.errors import ConfigError
from tap_ray.play.safe_poses import SafePosesConfig, build_library, thin, voxel_of
from tap_ray.types import EnvConfig

LOW, HIGH = (0.17, -0.21, 0.014), (0.41, 0.21, 0.25)


def library(**changes):
    values = {"seed": 0, "low_m": LOW, "high_m": HIGH} | changes
    return build_library(SafePosesConfig(num_samples=800), sample_poses, EnvConfig(), **values)


def test_thin_keeps_of_each_voxel_the_pose_nearest_to_its_center():
    pose = np.array([1.0, 0, 0, 0])
    rows = [(0.01, 0.01, 0.01), (0.024, 0.026, 0.025), (0.04, 0.04, 0.04), (0.06, 0.01, 0.01), (0.5, 0.0, 0.0)]
    poses = np.array([[*row, *pose] for row in rows])
    kept = thin(poses, np.zeros(3), np.full(3, 0.1), 0.05)
    np.testing.assert_array_equal(kept[:, :3], [(0.024, 0.026, 0.025), (0.06, 0.01, 0.01)])
    np.testing.assert_array_equal(kept, thin(poses[::-1], np.zeros(3), np.full(3, 0.1), 0.05))


def test_voxels_below_zero_do_not_share_one_with_those_above():
    np.testing.assert_array_equal(voxel_of(np.array([-0.01, 0.0, 0.01]), 0.05), [-1, 0, 0])


def test_library_is_one_reachable_pose_a_voxel_all_over_the_box():
    poses = library()
    assert len(np.unique(voxel_of(poses[:, :3], 0.05), axis=0)) == len(poses) > 150  # the box touches 6 x 10 x 5 voxels
    assert (poses[:, :3] >= LOW).all()
    assert (poses[:, :3] <= HIGH).all()
    np.testing.assert_array_equal(poses, library())
    assert not np.array_equal(poses, library(seed=1))


def test_a_robot_sent_to_library_poses_arrives():
    env = envs.make(EnvConfig(render=False, max_steps=60))
    obs, _ = env.reset(seed=0)
    pose = library()[40]
    for _ in range(20):
        shift = np.clip(pose[:3] - obs["state"][-7:-4], -0.05, 0.05)
        obs, *_ = env.step(np.array([*shift, 0, 0, 0, 1], np.float32))
    assert np.linalg.norm(obs["state"][-7:-4] - pose[:3]) < 0.01
    env.close()


def test_a_box_out_of_reach_is_refused():
    with pytest.raises(ConfigError, match=r"Only 0 of 800 reachable poses of 'widowx' .* Enlarge the box"):
        library(low_m=(0.6, 0.0, 0.0), high_m=(0.7, 0.1, 0.1))
