"""SIMPLER's twins in ManiSkill: conventions looked at on the robot, its own initial states, the same seed's bytes."""

import json
from dataclasses import replace
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

import envs
from envs.maniskill.backend import load
from envs.maniskill.env import SimplerEnv, SimplerVectorEnv, squared
from envs.maniskill.tasks import MANISKILL_TASKS, NUM_STATES
from envs.maniskill.wrist import WRIST_CAMERA, wrist_matrix
from envs.scene.randomize import tinted
from tap_ray.errors import ConfigError, SpecError
from tap_ray.rollout import rollout
from tap_ray.specs import require_compatible
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER, EnvConfig, RandomizeConfig

OPEN, CLOSED = 1.0, -1.0
STACK = EnvConfig(task="stack_green_on_yellow", sim="maniskill", image_size=32)
BOTH = ("main", "wrist")


def runnable() -> str:
    """Why the twins cannot run here; empty if they can."""
    try:
        SimplerEnv(STACK).close()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def stack() -> Any:
    if why := runnable():
        pytest.skip(why)
    env = SimplerEnv(STACK)
    yield env
    env.close()


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # ManiSkill builds tensors from lists of arrays
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]


def moved(env: gym.Env, *actions: tuple[float, ...], wait: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """State at the beginning, and after these actions and a while of standing still (the end effector lags behind)."""
    obs, _ = env.reset(seed=0)
    start, still = obs["state"], (0.0,) * 6 + (actions[-1][6],)
    for action in [*actions, *[still] * wait]:
        obs, *_ = env.step(np.array(action, np.float32))
    return start, obs["state"]


@pytest.mark.maniskill
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_end_effector_goes_where_it_is_told_to(stack: gym.Env, axis: int) -> None:
    """5 cm along x (forward), y (left), z (up) of the base; nothing else moves."""
    motion = np.eye(3)[axis] * 0.05
    start, end = moved(stack, (*motion, 0, 0, 0, OPEN))
    assert end[7:10] - start[7:10] == pytest.approx(motion, abs=0.001)
    assert abs(end[10:14] @ start[10:14]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.maniskill
@pytest.mark.parametrize("turn", [(0, 0, 0.3), (0.25, 0, 0), (0.2, -0.15, 0.25)])
def test_a_turn_is_an_axis_angle_of_the_base_frame(stack: gym.Env, turn: tuple[float, ...]) -> None:
    """R_next = exp([r]) R: looked at on the gripper."""
    start, end = moved(stack, (0, 0, 0, *turn, OPEN), wait=12)
    before, after = (Rotation.from_quat(state[10:14], scalar_first=True) for state in (start, end))
    assert (after * before.inv()).as_rotvec() == pytest.approx(turn, abs=0.02)
    assert end[7:10] == pytest.approx(start[7:10], abs=0.002)


@pytest.mark.maniskill
def test_the_gripper_opens_at_plus_one(stack: gym.Env) -> None:
    """SIMPLER's WidowX: +1 open, -1 closed, fingers at 37 and 15 mm."""
    _, closed = moved(stack, (0, 0, 0, 0, 0, 0, CLOSED))
    assert closed[6] == pytest.approx(0.0, abs=0.01)
    fingers = stack.unwrapped.vector_env.scene.env.agent.robot.get_qpos()[0, 6:8].numpy()  # type: ignore[attr-defined]
    assert fingers == pytest.approx([0.014, 0.014], abs=0.0015)
    _, opened = moved(stack, (0, 0, 0, 0, 0, 0, CLOSED), (0, 0, 0, 0, 0, 0, OPEN))
    assert opened[6] == pytest.approx(1.0, abs=0.01)


@pytest.mark.maniskill
def test_the_environments_contract(stack: gym.Env) -> None:
    check_env(stack, skip_render_check=True)
    obs, info = stack.reset(seed=0)
    assert obs["rgb"].shape == (32, 32, 3)
    assert obs["rgb"].std() > 20
    assert stack.unwrapped.render().shape == (32, 32, 3)  # type: ignore[union-attr]
    assert info["object_name"] == "green block,yellow block,,"
    require_compatible(
        stack.unwrapped.robot_spec,  # type: ignore[attr-defined]
        envs.spec(EnvConfig()),
        have_name="the twin",
        want_name="PyBullet's WidowX",
    )


@pytest.mark.maniskill
def test_simplers_own_initial_states(stack: gym.Env) -> None:
    """State 0: its blocks at (-0.21, -0.05) and (-0.21, 0.05) of ManiSkill's world; the base is at (0.147, 0.028)."""
    _, info = stack.reset(seed=0)
    assert info["object_pose"][:2, :2] == pytest.approx(np.array([[0.357, 0.078], [0.357, -0.022]]), abs=0.002)
    assert info["instruction"] == "stack the green block on the yellow block"
    places = {tuple(stack.reset(seed=s)[1]["object_pose"][:2, :2].round(2).ravel()) for s in range(NUM_STATES)}
    assert len(places) == NUM_STATES
    drawn = [stack.reset(seed=seed)[1]["object_pose"][:2, :2] for seed in (1000, 1001)]
    assert not np.allclose(drawn[0], drawn[1], atol=0.01)


@pytest.mark.maniskill
def test_bad_actions_and_no_episode(stack: gym.Env) -> None:
    stack.reset(seed=0)
    with pytest.raises(SpecError, match=r"\(N = 1, A = 7\) finite numbers; got an action of shape \(1, 6\)"):
        stack.step(np.zeros(6, np.float32))
    with pytest.raises(SpecError, match="Check the policy's output for NaN"):
        stack.step(np.full(7, np.nan, np.float32))
    *_, info = stack.step(np.full(7, 9.0, np.float32))
    assert info["num_clipped"] == 1
    assert info["action"] == pytest.approx([0.05] * 3 + [0.3] * 3 + [1.0])


def episode(env: gym.Env, seed: int) -> list[bytes]:
    obs, info = env.reset(seed=seed)
    rng, parts = np.random.default_rng(0), [info["object_pose"].tobytes()]
    for _ in range(15):
        action = rng.uniform(-0.03, 0.03, 7).astype(np.float32)
        obs, *_, info = env.step(np.append(action[:6] - (0, 0, 0.01, 0, 0, 0), np.sign(action[6])).astype(np.float32))
        parts += [obs["rgb"].tobytes(), obs["state"].tobytes(), info["object_pose"].tobytes()]
    return parts


@pytest.mark.maniskill
@pytest.mark.parametrize("task", ["play", "put_eggplant_in_basket"])
def test_the_same_seed_gives_the_same_bytes_whatever_came_before(stack: gym.Env, task: str) -> None:
    """Without a scene built anew, these two differ in the last bits after some other episodes."""
    env = SimplerEnv(EnvConfig(task=task, sim="maniskill", image_size=32))
    first = episode(env, 3)
    episode(env, 7)
    episode(env, 5)
    assert episode(env, 3) == first
    env.close()


@pytest.mark.maniskill
@pytest.mark.parametrize("task", MANISKILL_TASKS)
def test_the_expert_does_it(stack: gym.Env, task: str) -> None:
    """Two of SIMPLER's states and a drawn one, one process, side by side; jobs.evaluate evaluates all 24."""
    config = EnvConfig(task=task, sim="maniskill", image_size=16, max_steps=60)
    env = envs.make_ee_control(config, 3)
    done = rollout(
        env, envs.make_expert(config, 3), env_seeds=[0, 13, 123_456], policy_seeds=[0, 1, 2], settle=3
    ).trajectories
    assert sum(bool(one.entire.any()) for one in done) >= 2
    assert all(one.partial.any() for one in done)
    assert not any(one.entire[0] for one in done)
    env.close()


@pytest.mark.maniskill
def test_the_mask_is_the_robot(stack: gym.Env) -> None:
    env = SimplerEnv(EnvConfig(task="put_carrot_on_plate", sim="maniskill", image_size=64, robot_mask=True))
    obs, info = env.reset(seed=0)
    robot = info["robot_mask"] == 255
    assert 0.02 < robot.mean() < 0.4
    assert obs["rgb"][robot].mean() < obs["rgb"][~robot].mean() - 20  # the WidowX is black, the table is not
    env.close()


@pytest.mark.maniskill
def test_whose_pixel_it_is(stack: gym.Env) -> None:
    """Green where the green block is, and so on; the gripper lies above the blocks in the image."""
    env = SimplerEnv(EnvConfig(task=STACK.task, sim="maniskill", image_size=96, segmentation=True))
    obs, info = env.reset(seed=0)
    whose, rgb = info["segmentation"], obs["rgb"].astype(float)
    green, yellow = rgb[whose == FIRST_OBJECT].mean(0), rgb[whose == FIRST_OBJECT + 1].mean(0)
    assert green[1] > green[0] + 10
    assert yellow[0] > yellow[2] + 40
    assert 0 < (whose == GRIPPER).mean() < 0.2
    assert rgb[whose == GRIPPER].mean() < 80  # black
    assert set(np.unique(whose)) <= {ELSEWHERE, ARM, GRIPPER, FIRST_OBJECT, FIRST_OBJECT + 1}
    env.close()


@pytest.mark.maniskill
def test_without_images(stack: gym.Env) -> None:
    env = SimplerEnv(EnvConfig(task=STACK.task, sim="maniskill", image_size=32, render=False, cameras=BOTH))
    blind, seeing = env.reset(seed=0)[0], stack.reset(seed=0)[0]
    assert not blind["rgb"].any()
    assert blind["extra_rgb"].shape == (1, 32, 32, 3)
    assert not blind["extra_rgb"].any()
    assert np.array_equal(blind["state"], seeing["state"])
    env.close()


@pytest.fixture(scope="module")
def wrist(stack: gym.Env) -> Any:
    """The same twin as `stack`, with a second camera."""
    env = SimplerEnv(replace(STACK, cameras=BOTH))
    yield env
    env.close()


@pytest.mark.maniskill
def test_the_wrist_camera_is_added_to_the_first_one(stack: gym.Env, wrist: SimplerEnv) -> None:
    """The first image is the same without it, which has no second image; the second one moves with the gripper."""
    assert wrist.robot_spec.cameras == BOTH
    alone, (obs, _) = stack.reset(seed=0)[0], wrist.reset(seed=0)
    assert list(alone) == ["rgb", "state"]
    assert list(stack.unwrapped.vector_env.scene.env._sensors) == ["3rd_view_camera"]  # type: ignore[attr-defined]
    assert obs["extra_rgb"].shape == (1, 32, 32, 3)
    assert obs in wrist.observation_space
    assert np.array_equal(obs["rgb"], alone["rgb"])
    start = obs["extra_rgb"].astype(int)
    for _ in range(3):
        action = np.array([0.03, 0, -0.03, 0, 0, 0, CLOSED], np.float32)
        alone, obs = stack.step(action)[0], wrist.step(action)[0]
        assert np.array_equal(obs["rgb"], alone["rgb"])
        assert np.array_equal(obs["state"], alone["state"])
    assert np.abs(obs["extra_rgb"].astype(int) - start).mean() > 10


@pytest.mark.maniskill
def test_the_wrist_camera_sees_gripper_and_object_and_no_photograph(wrist: SimplerEnv) -> None:
    """Both fingers are in the upper half, the left one on the left; the green block below is green and between them."""
    obs, info = wrist.reset(seed=0)
    for _ in range(10):
        away_m = info["object_pose"][0, :2] - obs["state"][7:9]
        obs, *_, info = wrist.step(np.array([*np.clip(away_m, -0.05, 0.05), 0, 0, 0, 0, OPEN], np.float32))
    twin = wrist.vector_env.scene.env
    seen = twin._get_obs_sensor_data()
    assert np.array_equal(obs["extra_rgb"][0], squared(seen[WRIST_CAMERA]["rgb"], 32)[0])
    whose, rgb = seen[WRIST_CAMERA]["segmentation"].numpy()[0, ..., 0], seen[WRIST_CAMERA]["rgb"].numpy()[0]
    place = {}
    for thing in (twin.agent.finger1_link, twin.agent.finger2_link, next(iter(twin.objs.values()))):
        mine = whose == int(thing.per_scene_id[0])
        assert mine.mean() > 0.01, thing.name
        place[thing.name] = np.argwhere(mine).mean(0) / len(whose)
    left, right, block = place.values()
    assert max(left[0], right[0]) < 0.5
    assert left[1] + 0.1 < block[1] < right[1] - 0.1
    red, green, blue = rgb[mine].mean(0)
    assert green > max(red, blue) + 10
    twin._rgb_overlay_images = {name: 0 * photo for name, photo in twin._rgb_overlay_images.items()}
    dark = twin._get_obs_sensor_data()
    assert dark["3rd_view_camera"]["rgb"].float().mean() < 0.5 * seen["3rd_view_camera"]["rgb"].float().mean()
    assert np.array_equal(dark[WRIST_CAMERA]["rgb"], seen[WRIST_CAMERA]["rgb"])


@pytest.mark.maniskill
def test_a_scenario_moves_the_first_camera_only(wrist: SimplerEnv) -> None:
    there = wrist.reset(seed=0)[0]
    moved = SimplerEnv(replace(STACK, cameras=BOTH, scenario="viewpoint"))
    here = moved.reset(seed=0)[0]
    moved.close()
    assert np.abs(here["rgb"].astype(int) - there["rgb"]).mean() > 5
    assert np.array_equal(here["extra_rgb"], there["extra_rgb"])


def test_the_wrist_camera_looks_at_the_finger_tips() -> None:
    """In the tool frame from (-6, 0, -11) to (2.5, 0, -1) cm; left is the left finger's side."""
    forward, left, up = wrist_matrix().T
    assert forward == pytest.approx(np.array([8.5, 0, 10]) / np.hypot(8.5, 10))
    assert left == pytest.approx([0, 1, 0])
    assert up == pytest.approx(np.cross(forward, left))


@pytest.mark.maniskill
@pytest.mark.parametrize("task", ["put_carrot_on_plate", "put_eggplant_in_basket"])
def test_scenarios_change_what_they_say_and_nothing_else(stack: gym.Env, task: str) -> None:
    seen = {}
    for scenario in envs.SCENARIOS:
        env = SimplerEnv(EnvConfig(task=task, sim="maniskill", image_size=48, scenario=scenario))
        env.reset(seed=5)
        seen[scenario] = env.reset(seed=2)
        assert np.array_equal(env.reset(seed=2)[0]["rgb"], seen[scenario][0]["rgb"])
        env.close()
    obs, info = seen.pop("standard")
    ee_pos_m = obs["state"][7:10]
    for scenario, (other, other_info) in seen.items():
        place, standard_place = other_info["object_pose"][:2, :3], info["object_pose"][:2, :3]
        assert place == pytest.approx(standard_place, abs=0.004), scenario
        assert other_info["instruction"] == info["instruction"]
        moved_m = float(np.linalg.norm(other["state"][7:10] - ee_pos_m))
        assert (moved_m > 0.01) == (scenario == "initial_state"), (scenario, moved_m)
        assert np.abs(other["rgb"].astype(float) - obs["rgb"]).mean() > 0.1, scenario


@pytest.mark.maniskill
@pytest.mark.parametrize("task", ["put_carrot_on_plate", "play", "put_eggplant_in_basket"])
def test_distractors_stand_where_they_were_drawn(stack: gym.Env, task: str) -> None:
    """On the table to 4 mm, at first and after two seconds; three to five. The sink is uneven: they stay in it."""
    one = SimplerVectorEnv(EnvConfig(task=task, sim="maniskill", image_size=16, scenario="distractors"))
    for variant in range(5):
        one.reset(seed=30 + variant, options={"variant": variant})
        drawn = one.scene.perturbations[0].distractor
        assert 3 <= len(drawn) <= 5
        for _ in range(2):
            for actor, distractor in zip(one.scene.distractors, drawn, strict=True):
                place = one.pose_in_base(actor.pose)[0, :3]
                if "eggplant" in task:
                    assert (place > (0.10, -0.32, 0.03)).all(), distractor.object.name
                    assert (place < (0.47, 0.04, 0.15)).all(), distractor.object.name
                    continue
                assert place == pytest.approx([*distractor.position_m, one.task.table_z_m], abs=0.004), (
                    distractor.object.name
                )
            for _ in range(10):
                one.step(np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32))
    one.close()


@pytest.mark.maniskill
def test_randomized_play(stack: gym.Env) -> None:
    """The standard scene in another look, the same at the same seed; the mask is where the robot hides that look."""
    config = EnvConfig(sim="maniskill", image_size=96, robot_mask=True, segmentation=True)
    plain = SimplerEnv(config)
    env = SimplerEnv(replace(config, randomize=RandomizeConfig(max_distractors=0, camera_turn_rad=0.1)))
    for seed in (100, 101, 102):
        _, standard = plain.reset(seed=seed)
        obs, info = env.reset(seed=seed)
        assert info["object_pose"] == pytest.approx(standard["object_pose"], abs=0.004)
        assert "drawn" not in standard
        photo = env.vector_env.scene.env._rgb_overlay_images["3rd_view_camera"].byte()
        red, green, blue = (json.loads(info["drawn"])[f"light_{color}"] for color in ("red", "green", "blue"))
        bare = tinted(squared(photo, 96)[0], (red, green, blue))
        hidden = np.abs(bare.astype(int) - obs["rgb"]).max(-1) > 8
        mask = info["robot_mask"] == 255
        assert np.isin(info["segmentation"][mask], (ARM, GRIPPER)).all()
        assert 0.02 < mask.mean() < 0.5
        assert (mask & ~hidden).sum() < 0.06 * mask.sum()
        assert (hidden & (info["segmentation"] == ELSEWHERE)).mean() < 0.03  # borders, which are averaged
        for slot, pose in enumerate(info["object_pose"]):
            column, row, w = info["camera"] @ [*pose[:3], 1.0]
            if (column, row) >= (0, 0) and max(column, row) < 95 * w:  # the camera sees a part of the table
                whose = info["segmentation"][round(row / w), round(column / w)]
                assert whose in (FIRST_OBJECT + slot, ARM, GRIPPER), "the calibration is that of the image"
    again, again_info = env.reset(seed=102)
    assert (again["rgb"].tobytes(), again_info["drawn"]) == (obs["rgb"].tobytes(), info["drawn"])
    drawn = json.loads(again_info["drawn"])
    assert drawn["light_turn_rad"] == 0.0
    assert np.hypot(drawn["camera_left_m"], drawn["camera_up_m"]) <= 0.06
    plain.close()
    env.close()


def test_images_are_made_smaller_on_their_device_as_opencv_does() -> None:
    rng = np.random.default_rng(0)
    rgb, ids = rng.integers(0, 256, (2, 64, 64, 3), np.uint8), rng.integers(0, 99, (2, 64, 64, 1), np.int16)
    small = np.stack([cv2.resize(one, (32, 32), interpolation=cv2.INTER_AREA) for one in rgb])
    nearest = np.stack([cv2.resize(one, (32, 32), interpolation=cv2.INTER_NEAREST) for one in ids])
    assert np.array_equal(squared(torch.from_numpy(rgb), 32), small)
    assert np.array_equal(squared(torch.from_numpy(ids), 32), nearest[..., None])
    assert squared(torch.from_numpy(rgb), 24).shape == (2, 24, 24, 3)
    assert squared(torch.from_numpy(ids), 24).shape == (2, 24, 24, 1)


@pytest.mark.maniskill
def test_supersampling_keeps_the_image(stack: gym.Env) -> None:
    """Drawn at twice the policy's size, against SIMPLER's 640 x 480 averaged down: within 3 of 255 on the mean."""
    small = stack.reset(seed=0)[0]["rgb"].astype(float)
    large = SimplerEnv(EnvConfig(task=STACK.task, sim="maniskill", image_size=480))
    full = large.reset(seed=0)[0]["rgb"]
    large.close()
    assert np.abs(squared(torch.from_numpy(full[None]), 32)[0].astype(float) - small).mean() < 3


@pytest.mark.maniskill
def test_a_vector_of_one(stack: gym.Env) -> None:
    """Gymnasium's contract of seeds, which only a GPU can try with several robots."""
    one = SimplerVectorEnv(STACK)
    with pytest.raises(SpecError, match=r"render\(\) was called before reset\(\)"):
        one.render()
    with pytest.raises(SpecError, match=r"step\(\) was called before reset\(\)"):
        one.step(np.zeros((1, 7), np.float32))
    first, _ = one.reset(seed=[2])
    again, _ = one.reset(seed=np.array([2]))  # pyright: ignore[reportArgumentType]
    assert np.array_equal(first["rgb"], again["rgb"])
    assert np.array_equal(one.render(), again["rgb"])
    for seeds in ([1, 2], [-1]):
        with pytest.raises(SpecError, match="one seed >= 0 for each of its 1 robots"):
            one.reset(seed=seeds)
    with pytest.raises(SpecError, match="so reset_mask is not supported"):
        one.reset(seed=[0], options={"reset_mask": np.array([True])})
    one.close()


WRONG = [
    (
        EnvConfig(sim="maniskill", image_size=500),
        "SIMPLER's camera has 480 rows, so image_size must be at most 480; got 500",
    ),
    (EnvConfig(sim="maniskill", task="push_pumpkin_left"), "sim 'maniskill' has no task 'push_pumpkin_left'; it has"),
    (
        EnvConfig(sim="maniskill", cameras=("main", "left_wrist")),
        "has the cameras main, wrist, and main must be the first one; got main, left_wrist.",
    ),
    (EnvConfig(sim="maniskill", robot="panda"), "sim 'maniskill' has no robot 'panda'; it has widowx."),
    (
        EnvConfig(sim="maniskill", task="put_carrot_on_plate", partner="put_spoon_on_cloth"),
        "sim 'maniskill' has no mixed scenes; got partner 'put_spoon_on_cloth'. Omit it.",
    ),
]


@pytest.mark.parametrize(("config", "text"), WRONG)
def test_what_the_twins_do_not_have(config: EnvConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        envs.make(config)


def test_missing_files_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody meets ManiSkill's question whether to download."""
    pytest.importorskip("mani_skill")
    from mani_skill.utils.assets import data

    monkeypatch.setattr(data, "is_data_source_downloaded", lambda name: name != "bridge_v2_real2sim")
    with pytest.raises(
        ConfigError, match=r"files bridge_v2_real2sim are not in .*download_asset bridge_v2_real2sim -y"
    ):
        load()


def test_no_gpu_and_no_driver_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mani_skill")
    from envs.maniskill import backend

    with monkeypatch.context() as patch:
        patch.setattr(backend, "load", lambda: None)
        patch.setattr(backend.gym, "make", no_device)
        with pytest.raises(ConfigError, match=r"finds no working Vulkan driver \(Failed to find a rendering device"):
            backend.environment("none", 1, {}, gpu=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(backend, "load", lambda: None)
    with pytest.raises(ConfigError, match="'maniskill_gpu' needs an NVIDIA GPU, but torch finds none"):
        envs.make(EnvConfig(task=STACK.task, sim="maniskill_gpu"))
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package mani-skill \(Linux only\)"):
        envs.make(STACK)


def no_device(*_: Any, **__: Any) -> None:
    raise RuntimeError("Failed to find a rendering device")
