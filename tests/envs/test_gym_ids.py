"""The tasks as Gymnasium ids: what an RL library meets."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
from envs.gym_ids import dense_reward, gym_id
from tap_ray.errors import ConfigError

CARROT, PUSH = "tap_ray/PutCarrotOnPlate-v0", "tap_ray/PushPumpkinLeft-v0"
SMALL = {"image_size": 16, "max_steps": 3, "render": False}


def test_every_task_has_an_id() -> None:
    ids = {gym_id(task) for task in (*envs.TASKS, envs.PLAY)}
    assert {CARROT, PUSH, "tap_ray/Play-v0"} <= ids <= set(gym.registry)
    assert gym.make(CARROT, robot="panda", **SMALL).unwrapped.config.robot == "panda"  # type: ignore[attr-defined]


@pytest.mark.parametrize("extra", [{}, {"reward": "dense", "objects": True, "ends_on_success": True}])
def test_gymnasium_checker_passes_all_of_it(extra: dict[str, object]) -> None:
    for name in (CARROT, PUSH):
        env = gym.make(name, image_size=16, render_mode="rgb_array", **extra)
        check_env(env.unwrapped)  # raises what it finds
        assert env.spec is not None
        assert env.spec.id == name
        env.close()


def place(carrot_m: tuple[float, ...], plate_m: tuple[float, ...]) -> np.ndarray:
    poses = np.zeros((4, 7))
    poses[0, :3], poses[1, :3] = carrot_m, plate_m
    return poses


def test_dense_reward_of_a_laid_out_table() -> None:
    carrot, push = envs.TASKS["put_carrot_on_plate"], envs.TASKS["push_pumpkin_left"]
    now = place((0.3, 0.0, 0.0), (0.3, 0.1, 0.0))
    far, at = np.array([[0.3, 0.0, 0.2]]), np.array([[0.0, 0.0, 9.0], [0.3, 0.0, 0.0]])
    closer = 0.4 * (1 - np.tanh(0.5))
    assert dense_reward(carrot, at, now, now, (False, False)) == pytest.approx(0.2 + closer)
    assert dense_reward(carrot, far, now, now, (False, False)) == pytest.approx(0.2 * (1 - np.tanh(1.0)) + closer)
    assert dense_reward(carrot, at, now, now, (True, False)) == pytest.approx(0.5 + closer)
    assert dense_reward(carrot, far, now, now, (True, True)) == 1.0
    beside = now[0, :3] - (0.0, 0.03 + push.models[0].half_size_m[1], 0.0)
    half = place((0.3, 0.05, 0.0), (0.0, 0.0, 0.0))
    assert dense_reward(push, beside[None], now, now, (False, False)) == pytest.approx(0.2)
    assert dense_reward(push, beside[None] + (0, 0.05, 0), now, half, (True, False)) == pytest.approx(0.2 + 0.35)


def test_sparse_reward_is_success_and_may_end_the_episode() -> None:
    """The expert pushes: the first step that is rewarded is the last one."""
    env = gym.make(PUSH, render=False, ends_on_success=True)
    obs, info = env.reset(seed=1)
    expert = envs.make_expert(env.unwrapped.config, 1)  # type: ignore[attr-defined]
    first = {key: np.array([value]) for key, value in info.items()}
    expert.reset({"state": obs["state"][None]}, first, [0])
    rewards, terminated, truncated = [], False, False
    while not terminated and not truncated:
        action = expert.act({"state": obs["state"][None]}, {key: np.array([value]) for key, value in info.items()})[0]
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
    env.close()
    assert terminated
    assert info["is_success"]
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_same_step_autoreset_keeps_the_last_step(mode: str) -> None:
    robots = gym.make_vec(
        CARROT, 2, vectorization_mode=mode, vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, **SMALL
    )
    robots.reset(seed=5)
    for _ in range(3):
        obs, rewards, terminated, truncated, infos = robots.step(np.zeros((2, 7), np.float32))
    robots.close()
    assert truncated.all()
    assert not terminated.any()
    assert rewards.tolist() == [0.0, 0.0]
    assert infos["final_info"]["is_success"].tolist() == [False, False]
    assert infos["final_info"]["instruction"][0] in envs.TASKS["put_carrot_on_plate"].sentence
    assert not np.array_equal(infos["final_obs"][0]["state"], obs["state"][0])  # obs is the next episode's first


def test_next_step_autoreset_resets_one_step_later() -> None:
    robots = gym.make_vec(CARROT, 2, vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP}, **SMALL)
    robots.reset(seed=5)
    ended = []
    for _ in range(8):
        _, _, _, truncated, infos = robots.step(np.zeros((2, 7), np.float32))
        ended.append(bool(truncated.all()))
        assert "final_info" not in infos
    robots.close()
    assert ended == [False, False, True, False, False, False, True, False]


def test_two_episodes_of_one_seed_differ_and_repeat() -> None:
    starts = []
    for _ in range(2):
        env = gym.make(CARROT, objects=True, **SMALL)
        starts.append([env.reset(seed=3)[0]["object_pose"], env.reset()[0]["object_pose"]])
        env.close()
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0][0], starts[0][1])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"robt": "widowx"}, "tap_ray/PutCarrotOnPlate-v0 has no argument 'robt'. Did you mean 'robot'?"),
        ({"reward": "shaped"}, "reward must be 'sparse' or 'dense'; got 'shaped'."),
        ({"robot": "widowy"}, "Unknown robot 'widowy'. Did you mean 'widowx'?"),
    ],
)
def test_what_it_does_not_take(wrong: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        gym.make(CARROT, **wrong)
    assert text in str(error.value)


def test_play_has_no_dense_reward() -> None:
    with pytest.raises(ConfigError, match="Play has no goal and therefore no dense reward"):
        gym.make("tap_ray/Play-v0", reward="dense")
