"""A made-up robot whose every image is known: a square on a table moves, grows and dims exactly as its action says.

dx, dy   60 px a meter along the image's columns and rows     dz   grows by 6 x dz of its size
gripper  +1 the square stays bright, -1 it dims

With crops a second square lies on the table, and which of the two is meant only the object's crop tells: the robot goes
where that one lies, by 0.05 m for a square 12 px from the image's middle, and opens for the reddish one alone. The
place's crop is a plain color, and its level says how far to go along z.
"""

from typing import Iterator

import numpy as np

from tap_ray.dataset.crops import crop
from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.reach import NUM_REACH
from tap_ray.rng import generator
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec
from tap_ray.types import Window

SPEC = RobotSpec(robot="square", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
SIZE = 48
CROP = 12
"""Side of a crop, px."""
RED, BLUE = np.array([1.0, 0.3, 0.3]), np.array([0.2, 0.4, 1.0])
DRAWN = 0.05 / 12
"""Meters that it goes for each pixel between a square and the image's middle."""


def square_stats() -> NormStats:
    """Statistics of its actions and (constant) state."""
    half = np.array([0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 1.0])
    feature = {"mean": np.zeros(7), "std": half / 3**0.5}
    return norm_stats({"action": feature, "observation.state": {"mean": np.zeros(7), "std": np.ones(7)}}, SPEC)


def square_windows(
    seed: int, *, batch: int = 32, chunk: int = 2, goal: bool = True, crops: bool = False, start: int = 0
) -> Iterator[Window]:
    """Endless batches; number i is a pure function of (seed, i). Without either, task 0 is "go left", 1 "go right"."""
    number = start
    while True:
        yield square_window(seed, number, batch=batch, chunk=chunk, goal=goal, crops=crops)
        number += 1


def square_window(seed: int, number: int, *, batch: int, chunk: int, goal: bool, crops: bool = False) -> Window:
    """One batch. Reach targets (displacement, contact, release) are 1, 2 and 3 times the action's motion."""
    rng = generator(seed, "square", number)
    task_N = rng.integers(0, 2, batch)
    action_NA = np.zeros((batch, 7), np.float32)
    action_NA[:, :3] = rng.uniform(-0.05, 0.05, (batch, 3))
    action_NA[:, 6] = rng.choice([-1, 1], batch)
    if not goal:
        action_NA[:, 0] = np.where(task_N == 0, -0.04, 0.04)
    center_N2 = rng.uniform(12, SIZE - 12, (batch, 2))
    half_N = rng.uniform(4, 6, batch)
    table_N = rng.integers(40, 90, batch)
    tint_N3, crop_arrays, below = RED, {}, table(table_N)
    if crops:
        other_N2 = center_N2 % 24 + 12  # 12 px away in x and in y: they never overlap
        red_N = action_NA[:, 6] > 0
        tint_N3 = np.where(red_N[:, None], RED, BLUE)
        below = over(below, other_N2, half_N, 220 * np.where(red_N[:, None], BLUE, RED))
        action_NA[:, :2] = (center_N2 - SIZE / 2) * DRAWN
    moved_N2 = center_N2 + action_NA[:, :2] * 60
    bright_N = np.where(action_NA[:, 6] > 0, 220, 140)
    grown_N = half_N * (1 + 6 * action_NA[:, 2])
    rgb = over(below, center_N2, half_N, 220 * tint_N3)
    if crops:
        crop_arrays = _crop_arrays(rgb, center_N2, 130 + 2000 * action_NA[:, 2])
    return Window(
        rgb=rgb,
        goal_rgb=over(below, moved_N2, grown_N, bright_N[:, None] * tint_N3) if goal else None,
        k=np.full(batch, int(goal), np.int64),
        state=np.zeros((batch, 7), np.float32),
        action=np.repeat(action_NA[:, None], chunk, axis=1),
        action_mask=np.ones((batch, chunk), bool),
        reach=np.concatenate([n * action_NA[:, :3] for n in (1, 2, 3)] + [np.zeros((batch, 4), np.float32)], axis=1)
        if goal or crops
        else None,
        reach_mask=np.tile(np.arange(NUM_REACH) < 9, (batch, 1)) if goal or crops else None,  # a square has no yaw
        task_index=task_N,
        **crop_arrays,
    )


def _crop_arrays(rgb: np.ndarray, center_N2: np.ndarray, level_N: np.ndarray) -> dict[str, np.ndarray]:
    places = [(round(y), round(x)) for x, y in center_N2.tolist()]
    place_crop = np.broadcast_to(level_N.astype(np.uint8)[:, None, None, None], (len(rgb), CROP, CROP, 3))
    return {
        "object_crop": np.stack([crop(one, place, CROP) for one, place in zip(rgb, places, strict=True)]),
        "place_crop": place_crop.copy(),
        "crop_mask": np.ones((len(rgb), 2), bool),
        "crop_px": np.repeat(center_N2[:, None, ::-1], 2, axis=1).astype(np.float32),
        "crop_px_mask": np.broadcast_to([True, False], (len(rgb), 2)).copy(),
    }


def table(level_N: np.ndarray) -> np.ndarray:
    """(N, SIZE, SIZE, 3) uint8: a plain gray table."""
    return np.broadcast_to(level_N.astype(np.uint8)[:, None, None, None], (len(level_N), SIZE, SIZE, 3)).copy()


def over(below: np.ndarray, center_N2: np.ndarray, half_N: np.ndarray, color_N3: np.ndarray) -> np.ndarray:
    """(N, SIZE, SIZE, 3) uint8: squares with anti-aliased edges, centers (column, row), drawn on other images."""
    row, column = np.mgrid[:SIZE, :SIZE]
    far = np.maximum(abs(column - center_N2[:, 0, None, None]), abs(row - center_N2[:, 1, None, None]))
    inside = np.clip(half_N[:, None, None] - far + 0.5, 0, 1)[..., None]
    color = np.broadcast_to(color_N3, (len(below), 3))[:, None, None]
    return (below * (1 - inside) + color * inside).astype(np.uint8)


def draw(table_N: np.ndarray, center_N2: np.ndarray, half_N: np.ndarray, bright_N: np.ndarray) -> np.ndarray:
    """(N, SIZE, SIZE, 3) uint8: a reddish square on a gray table."""
    return over(table(table_N), center_N2, half_N, bright_N[:, None] * RED)
