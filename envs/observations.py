"""Defines what all our environments share: the observation spaces, and how a calibration follows its image."""

from typing import Any

import gymnasium as gym
import numpy as np


def image_spaces(num_cameras: int, size: int) -> dict[str, gym.Space[Any]]:
    """Spaces of "rgb" (the first camera), and with several cameras "extra_rgb" (the others), `size` px wide and
    high."""
    spaces: dict[str, gym.Space[Any]] = {"rgb": gym.spaces.Box(0, 255, (size, size, 3), np.uint8)}
    if num_cameras > 1:
        spaces["extra_rgb"] = gym.spaces.Box(0, 255, (num_cameras - 1, size, size, 3), np.uint8)
    return spaces


def resized_projection(
    projection_34: np.ndarray, *, across: float, down: float, left_px: int = 0, top_px: int = 0
) -> np.ndarray:
    """(3, 4): the calibration (as `info["camera"]`) of an image after pixels were cut off at its left and top, and it
    was scaled by the factors `across` and `down`. Pixel centers are whole numbers before and after."""
    column, row = (across - 1) / 2 - across * left_px, (down - 1) / 2 - down * top_px
    return np.array([[across, 0.0, column], [0.0, down, row], [0.0, 0.0, 1.0]]) @ projection_34
