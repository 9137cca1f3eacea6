"""Labels failed episodes with the reason: rules on privileged state give one label for each. NumPy only.

A success (the protocol's rule: entirely done at any step) has no label, "". An episode that crashed is "crashed". Any
other gets the first label whose test it passes.

Grasp and place (`FailureInputs.push_m` is None), if the right object, slot 0, was ever held; its last hold counts:
    timed_out      it was still in the gripper at the end
    misplaced      the fingers opened, the object had been carried, and it was near the target or near the table
    dropped        else: it slipped out of closed fingers, or they opened in mid-air or where it had lain
If it was never held:
    wrong_object   another object was moved before the right one was moved, or before a gripper closed near it
    never_reached  no gripper ever came near the right object
    missed_grasp   a gripper closed near it, or came near it and moved away again
    timed_out      else: a gripper came near it and was still there, without closing, when the steps ran out
Push:
    wrong_object   another object was moved before the right one was touched or moved
    never_reached  no finger touched it and it did not move
    misplaced      it moved, at the end farther sideways (or backwards) than in the right direction
    timed_out      else: it was touched, and perhaps moved in the right direction, but not far enough

Terms and their thresholds:
    near, of a gripper  tool center point within REACH_M (10 cm) of the object's center, and nearer to no other
                        object's. The longest object reaches 7 cm from its center, an open finger 4 cm from the
                        tool: nearer than that it may touch it. A gripper that hovers just above it counts, one
                        that is at a neighboring object does not.
    closing             gripper command below 0 while the gripper is near the right object
    moved               MOVED_M (3 cm) sideways or LIFTED_M (1 cm) upwards: an object brushed in passing moves 1 or 2 cm
    held                `partial` in HELD_STEPS (3) steps in a row, 0.6 s: shorter ones occur when open fingers come
                        down on an object and it jumps between them. In ManiSkill's twins `partial` is a grasp,
                        lifted or not
    in the gripper      from the last held step on, until the fingers open by OPENED (0.1) of their travel, 7 mm of
                        74, or the object shifts SHIFTED_M (3 cm) against the tool. Measured, not commanded: a
                        network's command rises over several steps. Also bridges an object lowered below the 1 cm that
                        `partial` asks for.
    carried             CARRIED_M (4 cm) sideways from where it lay at the start; no task is shorter than 4.6 cm
    near the target     centers NEAR_M (10 cm) apart sideways: the target's half size plus a few cm of bad aim
    near the table      at most LOW_M (6 cm) above where it lay: put down rather than dropped (the expert carries
                        objects 12 cm up and releases one on a block 4.5 cm up)
The last action's effect on `state` and `object_pose` is not recorded; its effect on `partial` is.

There are two classes, after "execution" and "semantic" of arXiv 2607.02466. Semantic: the robot did not go to the
object that the instruction names, it moved another or none. Execution: it did, and the motion failed. The paper's
authors divided the failures by hand and do not state the criterion, so their shares cannot be compared with those of
this rule. The rule cannot know intentions: an object put down correctly at a wrong place, or pushed the wrong way,
counts as execution, and an arm that never gets near the right object because its motion is poor counts as semantic.
"""

from dataclasses import dataclass, field
from typing import Literal, Mapping, get_args

import numpy as np
from numpy.typing import ArrayLike

from tap_ray.specs import ArmSlots, RobotSpec
from tap_ray.types import Trajectory

Failure = Literal["never_reached", "wrong_object", "missed_grasp", "dropped", "misplaced", "timed_out", "crashed"]
FailureClass = Literal["execution", "semantic"]

LABELS: tuple[Failure, ...] = get_args(Failure)
CLASS_OF: dict[Failure, FailureClass] = {
    "never_reached": "semantic",
    "wrong_object": "semantic",
    "missed_grasp": "execution",
    "dropped": "execution",
    "misplaced": "execution",
    "timed_out": "execution",
}
"""Label -> class; a crash has no class."""

REACH_M = 0.10
MOVED_M, LIFTED_M = 0.03, 0.01
HELD_STEPS = 3
OPENED, SHIFTED_M = 0.1, 0.03
CARRIED_M, NEAR_M, LOW_M = 0.04, 0.10, 0.06


@dataclass(frozen=True, kw_only=True)
class FailureInputs:
    """What the rules need to know about robot and task besides the trajectory."""

    arms: tuple[ArmSlots, ...]
    """The slots of each arm's end effector."""
    push_m: tuple[float, float] | None = None
    """How far slot 0 is to be pushed along x and y, m, table frame; None: it is grasped and brought to slot 1."""
    mover: Mapping[str, int] = field(default_factory=dict)
    """In a mixed scene, task -> slot of the object that it moves; empty in other scenes."""
    labeled: bool = True
    """False if objects or grippers are unknown (in a foreign environment); every failure is then "timed_out"."""


def failure_inputs_of(
    spec: RobotSpec, *, push_m: tuple[float, float] | None = None, mover: Mapping[str, int] | None = None
) -> FailureInputs:
    """The inputs for a robot's interface; `push_m` and `mover` as in `FailureInputs`."""
    return FailureInputs(arms=spec.arms, push_m=push_m, mover=mover or {})


def failure_of(trajectory: Trajectory, inputs: FailureInputs) -> Failure | Literal[""]:
    """The label of an episode that ran to its end; "" for a success. Definitions: this module's docstring."""
    if trajectory.entire.any():
        return ""
    if not inputs.labeled:
        return "timed_out"
    if inputs.push_m is not None:
        return _pushed(trajectory, np.array(inputs.push_m, float))
    held_T = _held(trajectory.partial)
    return _let_go(trajectory, inputs, held_T) if held_T.any() else _never_held(trajectory, inputs)


def first_moved(trajectory: Trajectory, inputs: FailureInputs) -> str:
    """Which task of a mixed scene had its object "moved" (this module's docstring) first; "" for neither.

    If both are first moved at the same step, the task whose object moved farther by then.
    """
    moved_TM = _moved(trajectory)
    first = {task: _first(moved_TM[:, slot]) for task, slot in inputs.mover.items()}
    step = min(first.values(), default=len(trajectory))
    if step == len(trajectory):
        return ""
    shift_M = np.linalg.norm(trajectory.object_pose[step, :, :3] - trajectory.object_pose[0, :, :3], axis=1)
    return max((task for task in first if first[task] == step), key=lambda task: shift_M[inputs.mover[task]])


def _pushed(trajectory: Trajectory, push_m: np.ndarray) -> Failure:
    moved_TM = _moved(trajectory)
    reached_step = _first(trajectory.partial | moved_TM[:, 0])
    if _first(moved_TM[:, 1:].any(axis=1)) < reached_step:
        return "wrong_object"
    if reached_step == len(trajectory):
        return "never_reached"
    shift = (trajectory.object_pose[-1, 0] - trajectory.object_pose[0, 0])[:2].astype(float)
    along = float(shift @ push_m / np.linalg.norm(push_m))
    sideways = float(np.sqrt(max(0.0, shift @ shift - along**2)))
    return "misplaced" if moved_TM[-1, 0] and along < sideways else "timed_out"


def _never_held(trajectory: Trajectory, inputs: FailureInputs) -> Failure:
    apart_THM = _apart(trajectory, inputs)
    near_TH = (apart_THM[..., 0] <= REACH_M) & (apart_THM.argmin(axis=2) == 0)
    closes_TH = np.stack([trajectory.action[:, arm.gripper] < 0 for arm in inputs.arms], axis=1)
    tried_T = (near_TH & closes_TH).any(axis=1)
    moved_TM = _moved(trajectory)
    other = _first(moved_TM[:, 1:].any(axis=1))
    if other < _first(moved_TM[:, 0]) and other < _first(tried_T) + 1:  # what is seen at t was done before action t
        return "wrong_object"
    if not near_TH.any():
        return "never_reached"
    left = bool((near_TH[:-1] & ~near_TH[1:]).any())
    return "missed_grasp" if tried_T.any() or left else "timed_out"


def _let_go(trajectory: Trajectory, inputs: FailureInputs, held_T: np.ndarray) -> Failure:
    held = int(np.flatnonzero(held_T)[-1]) + 1  # the first state that shows what the held step led to
    if held >= len(trajectory):
        return "timed_out"
    arm = inputs.arms[int(_apart(trajectory, inputs)[held, :, 0].argmin())]
    tool_T3 = trajectory.state[:, arm.ee_pos]
    item_T3, target_T3 = trajectory.object_pose[:, 0, :3], trajectory.object_pose[:, 1, :3]
    opened_T = _since(trajectory.state[:, arm.opening], held) > OPENED
    lost_T = opened_T | (np.linalg.norm(_since(item_T3 - tool_T3, held), axis=1) > SHIFTED_M)
    lost_T[:held] = False
    if not lost_T.any():
        return "timed_out"
    after = _first(lost_T)
    item = item_T3[after - 1]  # where it was when it was last held
    carried = _flat(item - item_T3[0]) >= CARRIED_M
    near = _flat(item - target_T3[after - 1]) <= NEAR_M or item[2] - item_T3[0, 2] <= LOW_M
    return "misplaced" if opened_T[after] and carried and near else "dropped"


def _held(partial_T: np.ndarray) -> np.ndarray:
    """(T,) bool: steps that complete or continue a hold."""
    held_T = partial_T.copy()
    for back in range(1, HELD_STEPS):
        held_T[:back] = False
        held_T[back:] &= partial_T[:-back]
    return held_T


def _apart(trajectory: Trajectory, inputs: FailureInputs) -> np.ndarray:
    """(T, H, M) distance from each tool to each object, m; infinite for an empty slot."""
    tool_TH3 = np.stack([trajectory.state[:, arm.ee_pos] for arm in inputs.arms], axis=1)
    apart_THM = np.linalg.norm(tool_TH3[:, :, None] - trajectory.object_pose[:, None, :, :3], axis=3)
    return np.where([bool(name) for name in trajectory.object_name], apart_THM, np.inf)


def _moved(trajectory: Trajectory) -> np.ndarray:
    """(T, M) bool: whether each object has been moved from its initial position."""
    shift_TM3 = trajectory.object_pose[..., :3] - trajectory.object_pose[0, :, :3]
    return (np.linalg.norm(shift_TM3[..., :2], axis=2) >= MOVED_M) | (shift_TM3[..., 2] >= LIFTED_M)


def _since(column: np.ndarray, step: int) -> np.ndarray:
    return column - column[step]


def _flat(vector: np.ndarray) -> float:
    """Horizontal length of vectors."""
    return float(np.linalg.norm(vector[:2]))


def _first(true: ArrayLike) -> int:
    """Index of the first true step of T; T if there is none."""
    true_T = np.asarray(true, bool)
    return int(true_T.argmax()) if true_T.any() else len(true_T)
