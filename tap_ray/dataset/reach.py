"""Where a robot's own tip goes next: targets that it gives itself."""

import numpy as np

from tap_ray.dataset.crops import CROPS, contact_bouts
from tap_ray.errors import DataError
from tap_ray.specs import RobotSpec

TIP_SLOTS = ("ee_x", "ee_y", "ee_z")
NEVER = np.iinfo(np.int64).max


def tip_columns(spec: RobotSpec) -> list[int]:
    """Places of the tip's x, y, z in the state.

    Raises:
        DataError: the robot does not report them.
    """
    names = [slot.name for slot in spec.state]
    if missing := [name for name in TIP_SLOTS if name not in names]:
        raise DataError(
            f"Reach targets need the state slots {', '.join(TIP_SLOTS)}; {spec.robot} has no {', '.join(missing)} but "
            f"{', '.join(names)}. Set windows.reach_steps to 0 to do without."
        )
    return [names.index(name) for name in TIP_SLOTS]


def reach_targets(tip_T3: np.ndarray, contact_T: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the robot's own tip will go: self-supervised targets in the robot's base frame.

    Args:
        tip_T3: tip position, m.
        contact_T: a finger touches an object.
        steps: how far ahead the displacement is taken.

    Returns:
        (T, 9) float32, m: displacement over the next `steps`; the vector to where the tip is when a contact next
        *begins* (strictly later than t); the vector to where it lets go, at the last step of the bout of contact that t
        leads to or belongs to (short gaps joined, as for crops). And (T, 9) int64, how many steps ahead that is: NEVER
        (and zeros before) where the episode ends first, or during the contact.
    """
    num_steps = len(tip_T3)
    now = np.arange(num_steps)
    begins = np.flatnonzero(contact_T & ~np.concatenate([[False], contact_T[:-1]]))
    next_contact = np.append(begins, num_steps)[np.searchsorted(begins, now, side="right")]
    ends = contact_bouts(contact_T, CROPS.gap_steps)[:, 1]
    release = np.append(np.where(ends < num_steps - 1, ends, num_steps), num_steps)[np.searchsorted(ends, now)]
    targets = np.stack([now + steps, next_contact, release], axis=1)
    known = targets < num_steps
    vector_T33 = tip_T3[np.minimum(targets, num_steps - 1)] - tip_T3[:, None] if steps else np.zeros((num_steps, 3, 3))
    reach = np.where(known[:, :, None], vector_T33, 0).astype(np.float32).reshape(num_steps, 9)
    return reach, np.where(known, targets - now[:, None], NEVER).repeat(3, axis=1)
