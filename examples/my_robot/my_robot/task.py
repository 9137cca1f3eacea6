"""Defines a task with its own object and goal: the bottle must be knocked over."""

import numpy as np

from envs.scene.objects import ObjectModel, rod
from envs.scene.tasks import TaskModel, Touch

BOTTLE = ObjectModel(
    name="bottle",
    mass_kg=0.06,
    half_size_m=(0.02, 0.02, 0.06),
    part=(
        rod(0.02, 0.09, (0, 0, 0.045), (0.1, 0.5, 0.2), solid=True),
        rod(0.01, 0.03, (0, 0, 0.105), (0.9, 0.9, 0.85), solid=True),
    ),
)
LYING = 0.5
"""The bottle counts as lying if the cosine of its tilt is below this: more than 60 degrees from upright."""


def check_success(start_M7: np.ndarray, now_M7: np.ndarray, touch: Touch) -> tuple[bool, bool]:
    """Partly done: a finger touches the bottle. Done: it lies. Poses are x y z (m), quaternion wxyz."""
    _, x, y, _ = now_M7[0, 3:]
    upright = 1 - 2 * (x * x + y * y)
    return 0 in touch.finger_during, bool(upright < LYING)


KNOCK_OVER = TaskModel(
    name="knock_over_bottle",
    object=("bottle",),
    own_object=(BOTTLE,),
    goal="lie",
    check_success=check_success,
    sentence=(
        "knock over the bottle",
        "tip the bottle over",
        "make the bottle fall",
        "push the bottle until it lies",
        "bring the green bottle down",
    ),
)
