"""A made-up robot whose every picture is known: a square on a table moves, grows and dims exactly as its action says.

dx, dy   60 px a metre along the image's columns and rows     dz   grows by 6 x dz of its size
gripper  +1 the square stays bright, -1 it dims
"""

from typing import Iterator

import numpy as np

from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.rng import generator
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec
from tap_ray.types import Window

SPEC = RobotSpec(robot="square", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
SIZE = 48


def square_stats() -> NormStats:
    """Statistics of its actions and (constant) state."""
    half = np.array([0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 1.0])
    feature = {"mean": np.zeros(7), "std": half / 3**0.5}
    return norm_stats({"action": feature, "observation.state": {"mean": np.zeros(7), "std": np.ones(7)}}, SPEC)


def square_windows(
    seed: int, *, batch: int = 32, chunk: int = 2, goal: bool = True, start: int = 0
) -> Iterator[Window]:
    """Endless batches; number i is a pure function of (seed, i). Without goal, task 0 is "go left", 1 "go right"."""
    number = start
    while True:
        yield square_window(seed, number, batch=batch, chunk=chunk, goal=goal)
        number += 1


def square_window(seed: int, number: int, *, batch: int, chunk: int, goal: bool) -> Window:
    """One batch."""
    rng = generator(seed, "square", number)
    task_N = rng.integers(0, 2, batch)
    action_NA = np.zeros((batch, 7), np.float32)
    action_NA[:, :3] = rng.uniform(-0.05, 0.05, (batch, 3))
    action_NA[:, 6] = rng.choice([-1, 1], batch)
    if not goal:
        action_NA[:, 0] = np.where(task_N == 0, -0.04, 0.04)
    centre_N2 = rng.uniform(12, SIZE - 12, (batch, 2))
    half_N = rng.uniform(4, 6, batch)
    table_N = rng.integers(40, 90, batch)
    moved_N2 = centre_N2 + action_NA[:, :2] * 60
    bright_N = np.where(action_NA[:, 6] > 0, 220, 140)
    grown_N = half_N * (1 + 6 * action_NA[:, 2])
    return Window(
        rgb=draw(table_N, centre_N2, half_N, np.full(batch, 220)),
        goal_rgb=draw(table_N, moved_N2, grown_N, bright_N) if goal else None,
        k=np.full(batch, int(goal), np.int64),
        state=np.zeros((batch, 7), np.float32),
        action=np.repeat(action_NA[:, None], chunk, axis=1),
        action_mask=np.ones((batch, chunk), bool),
        reach=np.concatenate([action_NA[:, :3]] * 2, axis=1) if goal else None,
        reach_mask=np.ones((batch, 6), bool) if goal else None,
        task_index=task_N,
    )


def draw(table_N: np.ndarray, centre_N2: np.ndarray, half_N: np.ndarray, bright_N: np.ndarray) -> np.ndarray:
    """(N, SIZE, SIZE, 3) uint8: a reddish square with anti-aliased edges on a grey table."""
    row, column = np.mgrid[:SIZE, :SIZE]
    far = np.maximum(abs(column - centre_N2[:, 0, None, None]), abs(row - centre_N2[:, 1, None, None]))
    inside = np.clip(half_N[:, None, None] - far + 0.5, 0, 1)[..., None]
    colour = bright_N[:, None, None, None] * np.array([1.0, 0.3, 0.3])
    return (table_N[:, None, None, None] * (1 - inside) + colour * inside).astype(np.uint8)
