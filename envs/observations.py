"""Defines the observation spaces of all our environments."""

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
