"""A foreign environment small enough to work out by hand: a point that moves exactly as told, and its adapter."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tap_ray.types import EnvConfig

ADAPTER = """
env: tests.slider:Slider
robot: slider
task: slide
instruction: [go left]
kwargs: {goal_y: 0.2}
camera: camera
repeat: 2
origin_m: [1.0, 2.0, 3.0]
state:
  - {slots: [ee_x, ee_y, ee_z], column: hand.place, at: [0, 1, 2]}
  - {slots: [ee_qw, ee_qx, ee_qy, ee_qz], constant: [0.70710678, 0, 0.70710678, 0]}
  - {slots: [gripper_opening], column: hand.fingers, closed: 10, open: 30}
action:
  - {slots: [dx, dy, dz], at: [1, 2, 3], scale: 0.1}
  - {slots: [gripper], at: [0], closed: 1, open: -1}
success: there
contact: moved
robot_mask: mask
expert: tests.slider:Left
"""


def write_adapter(folder: Path, **changed: str) -> str:
    """The adapter as a file, with lines replaced."""
    text = ADAPTER
    for start, line in changed.items():
        old = next(each for each in ADAPTER.splitlines() if each.startswith(f"{start}:"))
        text = text.replace(old, line)
    file = folder / "slider.yaml"
    file.write_text(text)
    return str(file)


class Slider(gym.Env[Any, np.ndarray]):
    """Starts at x 1.3, y 2 + up to 0.1 (drawn), z 3.1; it is there, and has ended, from y 2 + goal_y on."""

    def __init__(self, goal_y: float = 0.2) -> None:
        self._goal_y = goal_y
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.observation_space = gym.spaces.Dict()
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = np.array([1.3, 2.0 + self.np_random.uniform(0, 0.1), 3.1])
        self._fingers, self.steps = 30.0, 0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self._place[1] < 2 + self._goal_y, "nobody steps what has ended"
        self._place += 0.1 * action[1:]
        self._fingers = 20.0 - 10.0 * action[0]
        self.steps += 1
        there = bool(self._place[1] >= 2 + self._goal_y - 1e-9)
        return self._seen(), 1.0, there, self.steps >= 3, {"there": there, "moved": bool(action[1:].any())}

    def _seen(self) -> dict[str, Any]:
        camera = np.zeros((20, 40, 3), np.uint8)
        camera[:, 10:30] = 200  # the middle square
        mask = np.zeros((20, 40), bool)
        mask[:10] = True
        return {"hand": {"place": self._place.copy(), "fingers": [self._fingers]}, "camera": camera, "mask": mask}


class Left:
    """Goes left."""

    def __init__(self, scene: EnvConfig, num_robots: int) -> None: ...

    def reset(self, obs: Any, info: Any, seeds: Any) -> None: ...

    def act(self, obs: Any, info: Any) -> np.ndarray:
        return np.tile(np.array([0, 0.04, 0, 0, 0, 0, 1], np.float32), (len(obs["state"]), 1))
