"""Computes reach targets: future positions and orientations of the robot's end effector, from recorded states."""

import numpy as np

from tap_ray.dataset.crops import CROPS, contact_bouts
from tap_ray.errors import DataError
from tap_ray.specs import ArmSlots, RobotSpec, missing_slots

NUM_REACH = 13
"""Number of targets of one arm: three vectors and two yaws; see `reach_targets`."""
NEVER = np.iinfo(np.int64).max
CLOSES_EARLY = 3
"""A touch counts as a grasp if the fingers are commanded to close at most this many steps before it, or during the
bout."""


def reaching_arms(spec: RobotSpec) -> tuple[ArmSlots, ...]:
    """The arms of a robot, each of which has reach targets.

    Raises:
        DataError: an arm has no pose in the state or no gripper in the action.
    """
    missing = missing_slots(spec, "ee_pos", "ee_quat", "gripper")
    if missing:
        raise DataError(
            "Reach targets need each arm's ee_x, ee_y, ee_z, ee_qw, ee_qx, ee_qy and ee_qz in the state and gripper "
            f"in the action; {spec.robot} has no {', '.join(missing)} but "
            f"{', '.join(slot.name for slot in (*spec.state, *spec.action))}. Train without them. Stage 1: "
            "--objective.reach 0. Stage 2: omit --align.weights.reach and --play."
        )
    return spec.arms


def reach_of(
    state_TS: np.ndarray, action_TA: np.ndarray, contact_T: np.ndarray, spec: RobotSpec, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """`reach_targets` of a robot's episode for all arms; with `steps` 0 there are none.

    Contact may be that of any arm: each arm's targets are its own poses when one of the arms touches an object. If
    contact is unknown (`contact_T` is empty), only the displacement is a target.
    """
    contact_T = contact_T if len(contact_T) else np.zeros(len(state_TS), bool)
    if not steps:
        return np.zeros((len(state_TS), NUM_REACH), np.float32), np.full((len(state_TS), NUM_REACH), NEVER)
    parts = [reach_targets(state_TS, action_TA[:, arm.gripper], contact_T, arm, steps) for arm in reaching_arms(spec)]
    return np.concatenate([reach for reach, _ in parts], axis=1), np.concatenate([ahead for _, ahead in parts], axis=1)


def reach_targets(
    state_TS: np.ndarray, gripper_T: np.ndarray, contact_T: np.ndarray, arm: ArmSlots, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Self-supervised targets of one arm: where its end effector will go, in the robot's base frame.

    Args:
        state_TS: states before each action.
        gripper_T: gripper slot of the actions; below 0 it closes.
        contact_T: a finger touches an object.
        arm: slots of its pose in the state.
        steps: number of steps of the displacement.

    Returns:
        (T, 13) float32. 0 .. 2: displacement of the tip over the next `steps`, m. 3 .. 5: the way to where the tip is
        at the first touch of the bout of contact that t leads to, m (short gaps joined, as for crops; none while the
        bout lasts: the next one is about another object). 6 .. 8: the way to where it lets go, at the last step of the
        bout that t leads to or belongs to, m. 9, 10: cosine and sine of twice the gripper's yaw at that first touch,
        where the touch is a grasp. 11, 12: likewise of the yaw from now to then. Twice, because two fingers close alike
        after half a turn. And (T, 13) int64, how many steps ahead that is: NEVER (and zeros before) where there is
        none, or the episode ends first.
    """
    num_steps = len(state_TS)
    now = np.arange(num_steps)
    bouts_B2 = contact_bouts(contact_T, CROPS.gap_steps)
    touches, ends = bouts_B2.T
    bout_T = np.searchsorted(ends, now)
    touch = np.append(touches, num_steps)[bout_T]
    touch = np.where(touch > now, touch, num_steps)
    release = np.append(np.where(ends < num_steps - 1, ends, num_steps), num_steps)[bout_T]
    grasp = np.where(np.append(_grasps(gripper_T, bouts_B2), False)[bout_T], touch, num_steps)
    targets_T3 = np.stack([now + steps, touch, release], axis=1)
    tip_T3 = state_TS[:, arm.ee_pos]
    vectors_T33 = tip_T3[np.minimum(targets_T3, num_steps - 1)] - tip_T3[:, None]
    yaw_T = twice_yaw(state_TS[:, arm.ee_quat])
    then_T = yaw_T[np.minimum(grasp, num_steps - 1)]
    turn_T = then_T * yaw_T.conj()
    yaws_T4 = np.stack([np.real(then_T), np.imag(then_T), np.real(turn_T), np.imag(turn_T)], axis=1)
    at_TR = np.concatenate([targets_T3.repeat(3, axis=1), grasp[:, None].repeat(4, axis=1)], axis=1)
    known_TR = at_TR < num_steps
    reach_TR = np.concatenate([vectors_T33.reshape(num_steps, 9), yaws_T4], axis=1)
    return np.where(known_TR, reach_TR, 0).astype(np.float32), np.where(known_TR, at_TR - now[:, None], NEVER)


def twice_yaw(quat_T4: np.ndarray) -> np.ndarray:
    """(T,) complex, e^(2 i yaw) of the gripper's own y axis seen from above; shorter where that axis is not level."""
    w, x, y, z = np.asarray(quat_T4, np.float64).T
    axis_T = 2 * (x * y - w * z) + 1j * (1 - 2 * (x * x + z * z))
    return axis_T**2


def _grasps(gripper_T: np.ndarray, bouts_B2: np.ndarray) -> np.ndarray:
    """(B,) bool: whether the fingers were commanded to close just before or in each bout."""
    closed_T = gripper_T < 0
    closes_T = closed_T & ~np.concatenate([[True], closed_T[:-1]])
    return np.array([closes_T[max(0, touch - CLOSES_EARLY) : end + 1].any() for touch, end in bouts_B2], bool)
