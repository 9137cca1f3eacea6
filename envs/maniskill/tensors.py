"""Converts arrays to ManiSkill's tensors and back."""

from typing import Any

import numpy as np


def tensor(array: np.ndarray, device: Any) -> Any:
    """Convert an array to ManiSkill's tensor of the same shape on `device`."""
    from mani_skill.utils import common  # loads torch: only where ManiSkill runs

    return common.to_tensor(array, device=device)


def numpy(value: Any) -> np.ndarray:
    """Convert a tensor on any device to an array of the same shape and dtype."""
    return value.cpu().numpy()
