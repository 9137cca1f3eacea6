"""The constants of the explorers, on a robot without inertia: it is where it was commanded to be."""

import numpy as np
import pytest

from tap_ray import bounds
from tap_ray.errors import ConfigError, SpecError
from tap_ray.play.contact import ContactConfig
from tap_ray.play.explorers import (
    LIMIT_6,
    MIXABLE,
    ExplorerConfig,
    MixedConfig,
    UniformConfig,
    choices,
    make_explorer,
    pick,
)
from tap_ray.play.motion import (
    MotionConfig,
    Target,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
    rotate,
    segment,
)
from tap_ray.play.planners import CuriousConfig, CuriousPlanner, View, WaypointConfig, WaypointPlanner, far_enough
from tap_ray.specs import ArmSlots
from tests.made_camera import FROM_ABOVE

HOME = np.array([0.3, 0.0, 0.15, np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0])
GRID = np.array(
    [[x, y, z, *HOME[3:]] for x in (0.2, 0.25, 0.3, 0.35) for y in (-0.15, 0.0, 0.15) for z in (0.03, 0.08, 0.2)]
)
ARM = ArmSlots(ee_pos=(3, 4, 5), ee_quat=(6, 7, 8, 9))
"""Of a Ghost."""


class Ghost:
    """Executes every action at once and exactly, without a simulator."""

    def __init__(self):
        self.pose, self.action = HOME.copy(), np.zeros(7)

    def view(self):
        poses = np.zeros((2, 7), np.float32)
        poses[0] = (0.3, 0.1, 0.0, 1, 0, 0, 0)
        info = {"ee_action": self.action.astype(np.float32), "object_pose": poses, "object_name": "carrot,"}
        rgb = np.full((64, 64, 3), 180, np.uint8)
        rgb[28:33, 19:24] = (230, 120, 30)  # the carrot: row 30, column 21
        info |= {"camera": FROM_ABOVE, "robot_mask": np.zeros((64, 64), np.uint8)}
        return {"rgb": rgb, "state": np.concatenate([np.zeros(3), self.pose]).astype(np.float32)}, info

    def step(self, action):
        self.action = action
        self.pose[:3] += action[:3]
        self.pose[3:] = quat_multiply(quat_exp(action[3:6].astype(float)), self.pose[3:])


def play(explorer, num_steps=300, seed=0):
    """Actions (T, 7) and poses (T, 7) before each of them."""
    ghost, actions, poses = Ghost(), [], []
    explorer.reset(*ghost.view(), np.random.default_rng(seed))
    for _ in range(num_steps):
        actions.append(explorer.act(*ghost.view()))
        poses.append(ghost.pose.copy())
        ghost.step(actions[-1])
    return np.array(actions), np.array(poses)


def explorer(name, visits=None, **changes):
    return make_explorer(name, ExplorerConfig(**changes), arm=ARM, library_M7=GRID, visits=visits or {})


@pytest.mark.parametrize("name", MIXABLE)
def test_every_action_is_in_the_spec_and_keeps_the_end_effector_in_the_box(name):
    actions, poses = play(explorer(name))
    assert actions.dtype == np.float32
    assert (np.abs(actions[:, :6]) <= LIMIT_6 + 1e-7).all()
    assert set(np.unique(actions[:, 6])) == {-1.0, 1.0}
    motion = MotionConfig()
    assert (poses[:, :3] >= np.array(motion.bounds_low_m) - 1e-6).all()
    assert (poses[:, :3] <= np.array(motion.bounds_high_m) + 1e-6).all()
    assert (actions[:, :6].std(0) > [0.004, 0.004, 0.004, 0.01, 0.01, 0.01]).all()  # every slot moves


@pytest.mark.parametrize("name", MIXABLE)
def test_the_same_generator_plays_the_same(name):
    np.testing.assert_array_equal(play(explorer(name), 50)[0], play(explorer(name), 50)[0])
    assert not np.array_equal(play(explorer(name), 50)[0], play(explorer(name), 50, seed=1)[0])


def test_cosine_interpolation_starts_and_ends_at_rest_and_peaks_at_its_speed():
    target = Target(pos_base_m=np.array([0.4, 0.0, 0.15]), quat_wxyz=HOME[3:])
    path = segment(HOME[:3], HOME[3:], target, speed=1.0)
    assert path.num_steps == 4  # pi / 2 * 0.1 m / 0.05 m = 3.14, rounded up
    x = np.array([path.at(step)[0][0] for step in range(6)])
    np.testing.assert_allclose(x, 0.3 + 0.1 * (1 - np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4]) / 4)) / 2)
    assert np.diff(x).max() <= 0.05


def test_rotations_are_interpolated_about_one_axis():
    turn = np.array([0.0, 0.0, 0.6])
    target = Target(pos_base_m=HOME[:3], quat_wxyz=quat_multiply(quat_exp(turn), HOME[3:]))
    path = segment(HOME[:3], HOME[3:], target, speed=0.5)
    assert path.num_steps == 7  # pi / 2 * 0.6 / 0.15 = 6.28
    half = quat_log(quat_multiply(path.at(3.5)[1], quat_conjugate(HOME[3:])))
    np.testing.assert_allclose(half, turn / 2, atol=1e-12)


def test_quaternion_algebra():
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = rng.uniform(-1, 1, 3)
        np.testing.assert_allclose(quat_log(quat_exp(turn)), turn, atol=1e-12)
    np.testing.assert_allclose(
        rotate(quat_exp(np.array([0, 0, np.pi / 2])), np.array([1.0, 0, 0])), [0, 1, 0], atol=1e-12
    )
    np.testing.assert_array_equal(quat_log(quat_exp(np.zeros(3))), np.zeros(3))


def waypoints(config, num=200):
    """Waypoints a planner chooses when each is reached at once."""
    planner = WaypointPlanner(config, GRID)
    view = View(pos_m=HOME[:3], quat=HOME[3:], home_quat=HOME[3:], obs={}, info={}, rng=np.random.default_rng(0))
    planner.reset(view)
    visited = [view.pos_m]
    for _ in range(num):
        planner.watch(view)
        view.pos_m = planner.plan(view)[0].pos_base_m
        visited.append(view.pos_m)
    return np.array(visited)


def test_consecutive_way_points_are_at_least_d_min_apart():
    for d_min_m in (0.1, 0.2):
        gaps = np.linalg.norm(np.diff(waypoints(WaypointConfig(d_min_m=d_min_m, c_max_steps=0)), axis=0), axis=1)
        assert gaps.min() >= d_min_m
    assert len(np.unique(waypoints(WaypointConfig(c_max_steps=0)), axis=0)) == len(GRID) + 1  # all of them, and home


def test_where_nothing_is_far_enough_the_farthest_is_taken():
    np.testing.assert_array_equal(far_enough(GRID, np.array([0.2, -0.15, 0.03]), 9.0), GRID[[-1]])


def test_too_long_in_the_air_forces_a_descent():
    def longest_high(c_max_steps):
        config = WaypointConfig(c_max_steps=c_max_steps, z_thresh_m=0.1)
        motion = MotionConfig(speed_min=0.85, speed_max=0.85)  # 0.3 m in pi / 2 * 0.3 / 0.0425 = 11.1 steps
        _, poses = play(explorer("waypoint", waypoint=config, motion=motion), 1500)
        runs = "".join("x" if z > 0.1 else " " for z in poses[:, 2]).split()
        return max(len(run) for run in runs)

    assert longest_high(0) > 25  # without the rule
    assert longest_high(6) <= 6 + 12  # the rule, and the steps that a descent takes


def test_gripper_dwells_about_as_long_as_asked_and_can_stay_open():
    actions, _ = play(explorer("waypoint", motion=MotionConfig(gripper_dwell_steps=5)), 2000)
    assert 2000 / 5 * 0.8 < (np.diff(actions[:, 6]) != 0).sum() < 2000 / 5 * 1.2
    actions, _ = play(explorer("waypoint", motion=MotionConfig(gripper_dwell_steps=0)), 100)
    assert (actions[:, 6] == 1).all()


@pytest.mark.parametrize("name", ["contact", "visual"])
def test_it_goes_to_the_object_and_closes_there(name):
    actions, poses = play(explorer(name, contact=ContactConfig(free_probability=0, push_probability=0)), 60)
    closing = np.flatnonzero(np.diff(actions[:, 6]) < 0)[0] + 1
    np.testing.assert_allclose(poses[closing, :2], [0.3, 0.1], atol=0.04)
    assert poses[closing, 2] < 0.04


def test_curiosity_prefers_what_was_seen_least():
    visits = {f"hand:{x},{y},{z}": 10_000 for x in range(20) for y in range(-10, 10) for z in range(10)}
    del visits["hand:4,-3,0"]  # the cell of (0.2, -0.15, 0.03)
    config = CuriousConfig(num_candidates=200, object_weight=0.0, temperature=0.01)
    planner = CuriousPlanner(config, ContactConfig(), MotionConfig(), library_M7=GRID + 0.001, visits=visits)
    obs, info = Ghost().view()
    view = View(pos_m=HOME[:3], quat=HOME[3:], home_quat=HOME[3:], obs=obs, info=info, rng=np.random.default_rng(0))
    planner.reset(view)
    np.testing.assert_allclose(planner.plan(view)[0].pos_base_m, [0.201, -0.149, 0.031])


def test_mixed_draws_explorers_by_their_shares():
    config = ExplorerConfig(mixed=MixedConfig(uniform=1, waypoint=3, contact=0, curious=0))
    names = [pick("mixed", config, np.random.default_rng(i)) for i in range(400)]
    assert set(names) == {"uniform", "waypoint"}
    assert 70 < names.count("uniform") < 130
    assert pick("curious", config, np.random.default_rng(0)) == "curious"


def test_mixed_draws_explorers_of_other_packages_too():
    config = ExplorerConfig(mixed=MixedConfig(waypoint=1, contact=0, curious=0, others=("circles:2", "spirals:1")))
    assert choices("mixed", config) == ["waypoint", "circles", "spirals"]
    names = [pick("mixed", config, np.random.default_rng(i)) for i in range(400)]
    assert 160 < names.count("circles") < 240
    assert 70 < names.count("spirals") < 130
    ours, same = MixedConfig(), MixedConfig(others=("circles:0",))
    for number in range(50):
        one, other = (pick("mixed", ExplorerConfig(mixed=m), np.random.default_rng(number)) for m in (ours, same))
        assert one == other


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (("circles",), r"must be NAME:SHARE, e\.g\. circles:0\.2; got 'circles'\."),
        ((":0.2",), r"must be NAME:SHARE, .* got ':0\.2'\."),
        (("circles:-1",), r"must be NAME:SHARE, .* got 'circles:-1'\."),
        (("circles:nan",), r"at least 0, and not all 0; got .*'circles': nan"),
        (("contact:0.2",), r"'contact' already has a share\. Give it only once, with explorers\.mixed\.contact\."),
        (("circles:1", "circles:2"), r"'circles' already has a share\. Give it only once, with one NAME:SHARE\."),
    ],
)
def test_shares_that_mean_nothing(others: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        MixedConfig(others=others)


def test_a_state_without_a_pose_is_refused():
    with pytest.raises(SpecError, match=r"needs the tool's pose in the state .* of length 0.000"):
        explorer("uniform").reset({"state": np.zeros(10)}, {}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MotionConfig(bounds_low_m=(0.5, 0, 0)), "must be below bounds_high_m"),
        (lambda: MotionConfig(speed_min=0.5, speed_max=0.4), r"speed_min 0.5 must be at most speed_max 0.4"),
        (lambda: bounds.check(MotionConfig(speed_min=0.0)), r"--speed-min must be in \(0, 1\]; got 0\."),
        (lambda: bounds.check(MotionConfig(noise_pos_m=-1)), "--noise-pos-m must be at least 0; got -1"),
        (lambda: bounds.check(UniformConfig(scale=2)), r"--scale must be in \(0, 1\]; got 2"),
        (lambda: bounds.check(WaypointConfig(d_min_m=-1)), "--d-min-m must be at least 0; got -1"),
        (lambda: bounds.check(ContactConfig(push_probability=2)), r"--push-probability must be in \[0, 1\]; got 2"),
        (lambda: ContactConfig(keep_probability=0.9), "must be at most 1"),
        (lambda: bounds.check(CuriousConfig(temperature=0)), "--temperature must be more than 0; got 0"),
        (
            lambda: MixedConfig(waypoint=0, contact=0, curious=0),
            "shares of the explorer 'mixed' must be at least 0, and not all 0",
        ),
        (lambda: explorer("waypont"), "Unknown explorer 'waypont'. Did you mean 'waypoint'?"),
        (lambda: WaypointPlanner(WaypointConfig(z_thresh_m=0.01), GRID), "No safe pose is below z_thresh_m 0.01"),
    ],
)
def test_what_cannot_work_is_said(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
