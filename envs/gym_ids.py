"""Registers the tasks as Gymnasium ids, for reinforcement-learning libraries. Importing `envs` registers them.

import envs  # or gymnasium.make("envs:tap_ray/PutCarrotOnPlate-v0")
gymnasium.make("tap_ray/PutCarrotOnPlate-v0", robot="widowx", reward="dense")
gymnasium.make_vec("tap_ray/PushPumpkinLeft-v0", 8, vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
"""

from dataclasses import fields
from typing import Any, ClassVar, Iterable, Literal

import gymnasium as gym
import numpy as np

from envs.robots import robot, spec_of
from envs.scene.tasks import NUM_SLOTS, PLAY, PUSH_M, TASKS, TaskModel
from tap_ray.errors import ConfigError, nearest
from tap_ray.types import EnvConfig

FAR_M = 3.0
"""Bound of an object's coordinates in the observation space, m."""


def gym_id(task: str) -> str:
    """The id of a task, e.g. put_carrot_on_plate -> tap_ray/PutCarrotOnPlate-v0."""
    return f"tap_ray/{''.join(word.capitalize() for word in task.split('_'))}-v0"


def register(tasks: Iterable[str]) -> None:
    """Make these tasks known to Gymnasium."""
    for task in tasks:
        gym.register(gym_id(task), entry_point="envs.gym_ids:TaskEnv", kwargs={"task": task})


class TaskEnv(gym.Env[Any, np.ndarray]):
    """One robot and one task; observation, action and info are those of tap_ray/types.py.

    Besides, `info["is_success"]` says whether the task is entirely done now. Episodes are truncated after `max_steps`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        task: str,
        *,
        reward: Literal["sparse", "dense"] = "sparse",
        ends_on_success: bool = False,
        objects: bool = False,
        render_mode: str | None = None,
        **scene: Any,
    ) -> None:
        """Start a simulation.

        Args:
            task: a key of TASKS, or "play".
            reward: "sparse": 1 in each step with the task entirely done, else 0. "dense": see `dense_reward`.
            ends_on_success: whether an episode terminates once the task is entirely done.
            objects: whether the observation has "object_pose" as well, (4, 7) float32, as in `info`. Privileged.
            render_mode: "rgb_array" or None; `render` gives the camera's image either way.
            scene: further fields of EnvConfig (robot, sim, max_steps, image_size, render, ...).

        Raises:
            ConfigError: an unknown field, kind of reward, or scene.
        """
        import envs

        known = [field.name for field in fields(EnvConfig) if field.name != "task"]
        for name in scene:
            if name not in known:
                raise ConfigError(f"{gym_id(task)} has no argument {name!r}. {nearest(name, known)}")
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward must be 'sparse' or 'dense'; got {reward!r}.")
        if reward == "dense" and task == PLAY:
            raise ConfigError(
                "Play has no goal and therefore no dense reward. Use reward='sparse' (always 0), or name a task."
            )
        if reward == "dense" and TASKS[task].check_success is not None:
            raise ConfigError(f"Task {task!r} defines its own goal and has no dense reward. Use reward='sparse'.")
        self.config = EnvConfig(task=task, **scene)
        self.render_mode = render_mode
        self._dense, self._ends_on_success, self._objects = reward == "dense", ends_on_success, objects
        self._env = envs.make(self.config)
        self.action_space = self._env.action_space
        spaces: Any = self._env.observation_space
        if objects:
            poses = gym.spaces.Box(-FAR_M, FAR_M, (NUM_SLOTS, 7), np.float32)
            spaces = gym.spaces.Dict({**spaces, "object_pose": poses})
        self.observation_space = spaces
        self._arms = spec_of(robot(self.config.robot)).arms
        self._start_M7 = np.zeros((NUM_SLOTS, 7), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See the simulator's own `reset`."""
        super().reset(seed=seed)
        if seed is None:  # the next episode of a seeded env follows from its seed
            seed = int(self.np_random.integers(2**31))
        obs, info = self._env.reset(seed=seed, options=options)
        self._start_M7 = np.array(info["object_pose"])
        return self._seen(obs, info), {**info, "is_success": bool(info["entire"])}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action (A,), clipped into the spec's range."""
        obs, reward, terminated, truncated, info = self._env.step(action)
        done = bool(info["entire"])
        if self._dense:
            ee_pos_m = np.stack([np.asarray(obs["state"])[list(arm.ee_pos)] for arm in self._arms])
            poses = np.asarray(info["object_pose"])
            reward = dense_reward(TASKS[self.config.task], ee_pos_m, self._start_M7, poses, (info["partial"], done))
        terminated = bool(terminated) or (self._ends_on_success and done)
        return self._seen(obs, info), float(reward), terminated, bool(truncated), {**info, "is_success": done}

    def render(self) -> Any:
        """The camera's image, (image_size, image_size, 3) uint8."""
        return self._env.render()

    def close(self) -> None:
        """End the simulation."""
        self._env.close()

    def _seen(self, obs: Any, info: dict[str, Any]) -> dict[str, np.ndarray]:
        if not self._objects:
            return dict(obs)
        poses = np.clip(np.array(info["object_pose"], np.float32), -FAR_M, FAR_M)
        return {**obs, "object_pose": poses}


def dense_reward(
    task: TaskModel, ee_pos_m: np.ndarray, start_M7: np.ndarray, now_M7: np.ndarray, done: tuple[bool, bool]
) -> float:
    """Progress of the task, 0 .. 1; 1 only if it is entirely done.

    With near = 1 - tanh(5 / m * distance from the nearest end effector to where it should be):
        push   0.2 near + 0.7 (part of the way that the object has been pushed);
               the end effector should be 3 cm to the right of the object
        else   0.2 near + 0.3 (the object is held and lifted) + 0.4 (1 - tanh(5 / m * object to target, from above));
               the end effector should be at the object

    Args:
        task: the task.
        ee_pos_m: (arms, 3) tool positions, table frame.
        start_M7: object poses at the start of the episode, as in `info`.
        now_M7: object poses now.
        done: partly and entirely, as `check_success` says.
    """
    partial, entire = done
    if entire:
        return 1.0
    aim_m = now_M7[0, :3].copy()
    if task.goal == "push_left":
        aim_m[1] -= task.models[0].half_size_m[1] + 0.03
    near = 1 - np.tanh(5 * np.linalg.norm(ee_pos_m - aim_m, axis=1).min())
    if task.goal == "push_left":
        pushed = np.clip((now_M7[0, 1] - start_M7[0, 1]) / PUSH_M, 0, 1)
        return float(0.2 * near + 0.7 * pushed)
    closer = 1 - np.tanh(5 * np.linalg.norm(now_M7[0, :2] - now_M7[1, :2]))
    return float(0.2 * near + 0.3 * bool(partial) + 0.4 * closer)
