"""Replaces the robot's pixels in an episode's images by pixels of other frames."""

from collections.abc import Sequence

import numpy as np

GRAY = 128
"""Level of pixels that show the robot in every frame."""


def inpaint_robot(
    rgb_TYX3: np.ndarray, mask_TYX: np.ndarray, *, grow_px: int = 0, steps: Sequence[int] | None = None
) -> np.ndarray:
    """Replace each robot pixel by the same pixel of the nearest frame in which it is not the robot.

    The nearest frame (the earlier of two equally near) shows objects where they are at about that time; an object that
    moved while the robot hid it appears at its former or later position.

    Args:
        rgb_TYX3: an episode's images, uint8.
        mask_TYX: True where the robot is.
        grow_px: grow the mask by this many pixels to each side first.
        steps: the K frames to inpaint; None: all, K = T.

    Returns:
        New images, (K, Y, X, 3) uint8; pixels that are the robot in all frames are `GRAY`.
    """
    num_steps = len(rgb_TYX3)
    robot_TYX = grow(mask_TYX, grow_px)
    y_P, x_P = np.nonzero(robot_TYX.any(0))  # only these P pixels need any work
    robot_TP, rgb_TP3 = robot_TYX[:, y_P, x_P], rgb_TYX3[:, y_P, x_P]
    now = np.arange(num_steps, dtype=np.int32)[:, None]
    far = np.int32(2 * num_steps)
    earlier = np.maximum.accumulate(np.where(robot_TP, -far, now), axis=0)
    later = np.minimum.accumulate(np.where(robot_TP, 2 * far, now)[::-1], axis=0)[::-1]
    step_K = np.arange(num_steps) if steps is None else np.asarray(steps, np.int64)
    k, p = np.nonzero(robot_TP[step_K])
    t = step_K[k]
    before, after = earlier[t, p], later[t, p]
    source = np.where(t - before <= after - t, before, after)
    seen = (source >= 0) & (source < num_steps)
    result = rgb_TYX3[step_K]
    result[k, y_P[p], x_P[p]] = np.where(seen[:, None], rgb_TP3[np.where(seen, source, 0), p], np.uint8(GRAY))
    return result


def grow(mask_TYX: np.ndarray, px: int) -> np.ndarray:
    """The mask grown by a square of 2 px + 1 pixels."""
    grown = mask_TYX
    for axis in (1, 2):
        wide = grown.copy()
        for shift in range(1, min(px, grown.shape[axis] - 1) + 1):
            low = [slice(None)] * 3
            high = [slice(None)] * 3
            low[axis], high[axis] = slice(None, -shift), slice(shift, None)
            wide[tuple(low)] |= grown[tuple(high)]
            wide[tuple(high)] |= grown[tuple(low)]
        grown = wide
    return grown
