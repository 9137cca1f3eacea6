"""The table-top environment: action conventions replayed, determinism, errors, images."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

import envs
from envs.bullet.camera import RenderConfig
from envs.bullet.env import TabletopEnv
from envs.kinematics.rotations import axis_angle_matrix, quaternion_matrix, turn_between
from tap_ray.errors import SpecError
from tap_ray.types import EnvConfig

TOOL, QUAT, OPENING = slice(7, 10), slice(10, 14), 6


@pytest.fixture
def env() -> Iterator:
    made = envs.make(EnvConfig(task="push_pumpkin_left", image_size=48, robot_mask=True))
    made.reset(seed=0)
    yield made
    made.close()


def act(**slot: float) -> np.ndarray:
    """An action of zeros, gripper open, but for the slots named."""
    names = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
    return np.array([slot.get(name, 1.0 if name == "gripper" else 0.0) for name in names], np.float32)


@pytest.mark.parametrize(("slot", "axis"), [("dx", 0), ("dy", 1), ("dz", 2)])
@pytest.mark.parametrize("meters", [0.05, -0.03])
def test_translation_moves_the_tool_in_the_base_frame(env, slot: str, axis: int, meters: float) -> None:
    before = env.step(act(dx=0.02))[0]["state"]
    after = env.step(act(**{slot: meters}))[0]["state"]
    moved = after[TOOL] - before[TOOL]
    want = np.eye(3)[axis] * meters
    assert np.abs(moved - want).max() < 0.002


@pytest.mark.parametrize(("slot", "axis"), [("drx", 0), ("dry", 1), ("drz", 2)])
def test_rotation_turns_the_tool_from_the_left(env, slot: str, axis: int) -> None:
    env.step(act(drz=0.3))  # away from the axes, so that left and right differ
    before = quaternion_matrix(env.step(act(drx=0.2))[0]["state"][QUAT])
    after = quaternion_matrix(env.step(act(**{slot: 0.3}))[0]["state"][QUAT])
    want = axis_angle_matrix(np.eye(3)[axis] * 0.3) @ before
    assert np.linalg.norm(turn_between(want, after)) < 0.02
    assert np.linalg.norm(turn_between(before @ axis_angle_matrix(np.eye(3)[axis] * 0.3), after)) > 0.05


def test_gripper_is_absolute(env) -> None:
    def settle(value: float) -> float:
        for _ in range(3):
            state = env.step(act(gripper=value))[0]["state"]
        return float(state[OPENING])

    assert settle(1.0) == pytest.approx(1.0, abs=0.02)
    assert settle(-1.0) == pytest.approx(0.0, abs=0.02)
    assert settle(0.0) == pytest.approx(0.5, abs=0.03)


def test_commands_that_add_up_leave_no_error(env) -> None:
    rng = np.random.default_rng(0)
    start = env.step(act())[0]["state"]
    total = np.zeros(3)
    for _ in range(8):
        delta = rng.uniform(-0.015, 0.015, 3)
        total += delta
        state = env.step(act(dx=delta[0], dy=delta[1], dz=delta[2]))[0]["state"]
    assert np.abs(state[TOOL] - start[TOOL] - total).max() < 0.002


def test_the_workspace_ends(env) -> None:
    for _ in range(12):
        state = env.step(act(dy=0.05))[0]["state"]
    assert state[TOOL][1] == pytest.approx(0.22, abs=0.003)
    back = env.step(act(dy=-0.05))[0]["state"]
    assert state[TOOL][1] - back[TOOL][1] == pytest.approx(0.05, abs=0.003)  # nothing has wound up


def test_pressing_on_the_table_does_not_wind_up(env) -> None:
    env.step(act(dx=0.05, dy=0.05))
    for _ in range(8):
        env.step(act(dz=-0.05, dry=0.3))
    low = env.step(act())[0]["state"]
    high = env.step(act(dz=0.05))[0]["state"]
    assert low[TOOL][2] < 0.04
    assert 0.02 < high[TOOL][2] - low[TOOL][2] < 0.09


def test_out_of_range_is_clipped_and_counted(env) -> None:
    _, info = env.reset(seed=1)
    assert info["num_clipped"] == 0
    _, _, _, _, info = env.step(act(dx=9.0))
    assert info["num_clipped"] == 1
    assert info["action"] == pytest.approx(act(dx=0.05))
    _, _, _, _, info = env.step(act(dx=0.05))
    assert info["num_clipped"] == 1


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (
            np.zeros(6),
            "An action of widowx must be 7 finite numbers: dx (m), .*, gripper (1); got an action of shape (6,)",
        ),
        (np.zeros((1, 7)), "got an action of shape (1, 7). Pass one action for each robot and step"),
        (np.full(7, np.nan), "got [nan, .*. Check the policy's output for NaN"),
    ],
)
def test_bad_actions_are_explained(env, action: np.ndarray, text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(text).replace(r"\.\*", ".*")):
        env.step(action)


def test_reset_comes_first() -> None:
    env = envs.make(EnvConfig())
    with pytest.raises(SpecError, match=r"step\(\) was called before reset"):
        env.step(act())
    with pytest.raises(SpecError, match=r"render\(\) was called before reset"):
        env.render()
    env.close()


def _episode(env, seed: int) -> list[bytes]:
    """Everything an episode shows, as bytes."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    seen = [obs["rgb"].tobytes(), obs["state"].tobytes(), info["object_pose"].tobytes()]
    for _ in range(15):
        action = rng.uniform(-1, 1, 7) * [0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 1] - [0, 0, 0.02, 0, 0, 0, 0]
        obs, reward, _, _, info = env.step(action)
        seen += [obs["rgb"].tobytes(), obs["state"].tobytes(), info["object_pose"].tobytes(), bytes([int(reward)])]
    return seen


def test_same_seed_same_bytes_whatever_came_before() -> None:
    config = EnvConfig(task="play", image_size=48)
    first, second = envs.make(config), envs.make(config)
    _episode(second, 5)
    _episode(second, 6)
    assert _episode(first, 7) == _episode(second, 7)
    assert _episode(first, 7) != _episode(first, 8)
    first.close()
    second.close()


def test_episodes_are_truncated_never_terminated() -> None:
    env = envs.make(EnvConfig(max_steps=3, render=False))
    env.reset(seed=0)
    flags = [env.step(act())[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    env.close()


def test_images() -> None:
    env = envs.make(EnvConfig(task="put_carrot_on_plate", image_size=64, robot_mask=True), render_size=128)
    obs, info = env.reset(seed=0)
    assert obs["rgb"].shape == (64, 64, 3)
    mask = info["robot_mask"]
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {0, 255}
    assert obs["rgb"][mask == 0].mean() > obs["rgb"][mask == 255].mean() + 30  # a dark robot on a light table
    image = env.render()
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    moved = env.step(act(dx=0.05))[0]["rgb"]
    assert np.abs(moved.astype(int) - obs["rgb"]).max() > 50
    env.close()
    blind = envs.make(EnvConfig(image_size=64, render=False, robot_mask=True))
    obs, info = blind.reset(seed=0)
    assert not obs["rgb"].any()
    assert not info["robot_mask"].any()
    blind.close()


def test_what_the_scene_looks_like_changes_nothing_in_it() -> None:
    config = EnvConfig(task="put_carrot_on_plate", image_size=48)
    plain, bare = TabletopEnv(config), TabletopEnv(config, render_config=RenderConfig(gripper_shadow=False))
    (seen, info), (other, other_info) = plain.reset(seed=2), bare.reset(seed=2)
    darker = (seen["rgb"].astype(int) < other["rgb"]).any(-1)
    assert 5 < darker.sum() < 200  # the gripper's shadow
    for _ in range(5):
        seen, _, _, _, info = plain.step(act(dz=-0.03))
        other, _, _, _, other_info = bare.step(act(dz=-0.03))
    assert np.array_equal(seen["state"], other["state"])
    assert np.array_equal(info["object_pose"], other_info["object_pose"])
    plain.close()
    bare.close()
