"""Runs the only loop that calls `env.step`: play, demonstrations and evaluation all use it."""

import json
import time
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import gymnasium as gym
import numpy as np

from tap_ray.types import Explorer, Info, Observation, Policy, Trajectory

SEEN = ("contact", "object_pose", "robot_mask", "segmentation")
"""Keys of `info` that a trajectory stores before each action; the last two only if the scene has them."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The trajectories of N robots in one episode each, run side by side."""

    trajectories: list[Trajectory]
    seconds: float
    """Wall-clock time of the whole rollout, s."""
    policy_seconds: float
    """Time spent in `policy.act`, s."""
    num_calls: int
    """Number of calls of the policy."""


def rollout(
    env: gym.vector.VectorEnv,
    policy: Policy,
    *,
    env_seeds: Sequence[int],
    policy_seeds: Sequence[int],
    settle: int | None = None,
) -> Rollout:
    """Run one episode on each of the N robots of `env`, in lockstep, to its step limit.

    Args:
        env: N robots whose episodes all have the same length (`terminated` stays False), as `envs.make_vector` makes.
        policy: acts for all N at once.
        env_seeds: N seeds of the initial states.
        policy_seeds: N seeds of the policy's own noise.
        settle: stop once every robot has been entirely successful for this many steps; None runs to the limit.

    Returns:
        N trajectories in the order of the seeds; entry t holds what was seen before action t.

    Raises:
        FloatingPointError: the policy's action is not finite, e.g. because the simulator diverged before it.
    """
    start = time.perf_counter()
    obs, info = env.reset(seed=[int(seed) for seed in env_seeds])  # pyright: ignore[reportArgumentType]
    policy.reset(obs, info, policy_seeds)
    first = info
    steps: list[dict[str, Any]] = []
    policy_seconds = 0.0
    done = False
    while not done:
        before = time.perf_counter()
        action_NA = np.asarray(policy.act(obs, info), np.float32)
        policy_seconds += time.perf_counter() - before
        if not np.isfinite(action_NA).all():
            raise FloatingPointError(f"the action of step {len(steps)} is NaN or infinite")
        step: dict[str, Any] = {key: np.array(obs[key]) for key in ("rgb", "extra_rgb", "state") if key in obs}
        step |= {key: np.array(info[key]) for key in SEEN if key in info}
        obs, _, _, truncated, info = env.step(action_NA)
        step["action"] = np.array(info["action"])
        step |= {key: np.array(info[key]) for key in ("partial", "entire")}
        steps.append(step)
        done = bool(np.all(truncated)) or _settled(steps, settle)
    columns = {key: np.stack([step[key] for step in steps], axis=1) for key in steps[0]}
    trajectories = [_trajectory(columns, first, info, robot) for robot in range(env.num_envs)]
    return Rollout(
        trajectories=trajectories,
        seconds=time.perf_counter() - start,
        policy_seconds=policy_seconds,
        num_calls=len(steps),
    )


def _settled(steps: list[dict[str, Any]], settle: int | None) -> bool:
    if settle is None or len(steps) < settle:
        return False
    return all(bool(np.all(step["entire"])) for step in steps[len(steps) - settle :])


def _trajectory(columns: dict[str, np.ndarray], first: dict[str, Any], last: dict[str, Any], robot: int) -> Trajectory:
    """Extract the trajectory of robot number `robot` from the (N, T, ...) columns."""
    robot_columns = {key: column[robot] for key, column in columns.items()}
    return Trajectory(
        rgb=robot_columns["rgb"],
        state=robot_columns["state"].astype(np.float32),
        action=robot_columns["action"].astype(np.float32),
        contact=robot_columns.get("contact", np.zeros(0)).astype(bool),
        object_pose=robot_columns["object_pose"].astype(np.float32),
        robot_mask=robot_columns.get("robot_mask"),
        segmentation=robot_columns.get("segmentation"),
        partial=robot_columns["partial"].astype(bool),
        entire=robot_columns["entire"].astype(bool),
        object_name=tuple(str(first["object_name"][robot]).split(",")),
        instruction=str(first["instruction"][robot]),
        num_clipped=int(last["num_clipped"][robot]),
        extra_rgb=robot_columns.get("extra_rgb"),
        drawn=json.loads(str(first["drawn"][robot])) if "drawn" in first else {},
    )


class PerRobot:
    """N explorers, one per robot, as one `Policy`."""

    def __init__(self, explorers: Sequence[Explorer]) -> None:
        self._explorers = list(explorers)

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Reset each explorer with its own robot's view and its own generator."""
        for robot, (explorer, seed) in enumerate(zip(self._explorers, seeds, strict=True)):
            explorer.reset(_of(obs, robot), _of(info, robot), np.random.default_rng(seed))

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) actions, one row per explorer."""
        return np.stack([e.act(_of(obs, robot), _of(info, robot)) for robot, e in enumerate(self._explorers)])


class Replay:
    """A `Policy` that replays given actions."""

    def __init__(self, action_NTA: np.ndarray) -> None:
        self._action_NTA, self._step = action_NTA, 0

    def reset(self, obs: Observation, info: Info, seeds: Sequence[int]) -> None:
        """Begin the actions again."""
        self._step = 0

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """(N, A) the next actions; the last ones are repeated at the end."""
        step = min(self._step, self._action_NTA.shape[1] - 1)
        self._step += 1
        return self._action_NTA[:, step]


def _of(batch: Mapping[str, Any], robot: int) -> dict[str, Any]:
    """The entries of robot number `robot` in a batched observation or info."""
    return {key: value[robot] for key, value in batch.items() if not key.startswith("_")}
