"""A closed-form robot that follows the contract: a point on a line, so that every outcome can be worked out by hand.

It starts at 0 if the seed is even and at -10 (out of reach) if it is odd, and moves by action[0], clipped to +-0.25.
*Partial*: x >= 0.5. *Entire*: 0.99 <= x <= 1.01, so that moving on past 1 succeeds once but not at the end.
"""

import os
import signal

import gymnasium as gym
import numpy as np

from tap_ray.evaluate.failures import FailureInputs
from tap_ray.specs import ArmSlots
from tap_ray.types import EnvConfig


class LineWorld(gym.Env):
    """`bad_seed` makes the episode with this seed crash at its third step: "raise" an error or "exit" the process."""

    action_space = gym.spaces.Box(-0.25, 0.25, (1,), np.float32)
    observation_space = gym.spaces.Dict(
        {
            "rgb": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "state": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )

    def __init__(self, config: EnvConfig, bad_seed: int | None = None, how: str = "raise") -> None:
        self.config, self.bad_seed, self.how = config, bad_seed, how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.x, self.time, self.num_clipped = seed, 0.0 if seed % 2 == 0 else -10.0, 0, 0
        return self._obs(), self._info(np.zeros(1, np.float32))

    def step(self, action):
        if self.seed == self.bad_seed and self.time == 2:
            if self.how == "exit":
                os.kill(os.getpid(), signal.SIGSEGV)  # as a simulator dies
            raise RuntimeError(f"the arm fell off at step {self.time}")
        clipped = np.clip(action, -0.25, 0.25).astype(np.float32)
        self.num_clipped += int((clipped != action).any())
        self.x, self.time = self.x + float(clipped[0]), self.time + 1
        return self._obs(), 0.0, False, self.time >= self.config.max_steps, self._info(clipped)

    def _obs(self):
        return {"rgb": np.full((8, 8, 3), self.time, np.uint8), "state": np.array([self.x], np.float32)}

    def _info(self, action):
        return {
            "object_pose": np.full((1, 7), self.x, np.float32),
            "object_name": "point",
            "contact": self.x >= 0.25,
            "partial": self.x >= 0.5,
            "entire": 0.99 <= self.x <= 1.01,
            "action": action,
            "num_clipped": self.num_clipped,
            "instruction": f"go to one ({self.config.task})",
        }


def line_robots(num: int, config: EnvConfig, **bad) -> gym.vector.SyncVectorEnv:
    """N of them in lockstep."""
    return gym.vector.SyncVectorEnv([lambda: LineWorld(config, **bad)] * num)


def line_failure_inputs(config: EnvConfig) -> FailureInputs:
    """The point is its own end effector, at its own object: whoever fails has reached it and never closes."""
    return FailureInputs(arms=(ArmSlots(ee_pos=(0,), opening=0, gripper=0),))


class Forward:
    """Moves every robot by the same amount at every step, and remembers what it was given."""

    def __init__(self, amount: float = 0.25) -> None:
        self.amount, self.seeds = amount, []

    def reset(self, obs, info, seeds):
        self.seeds = list(seeds)

    def act(self, obs, info):
        return np.full((len(obs["state"]), 1), self.amount, np.float32)
