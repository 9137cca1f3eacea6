"""Describes the interface of a robot and a policy: order, unit, frame, range, gripper sign and control rate of every
slot.

Conventions are data here, so that robot and policy can be compared before the first step. A mismatch is an error that
names every difference (unnoticed, such errors cost 5 to 100 points of success).

The action (7-D for one arm), the change of the *commanded* end-effector pose over one control step:
    dx dy dz      m, robot base frame (x forward, y left, z up)
    drx dry drz   rad, axis-angle in the base frame, applied from the left: R_next = exp([dr]) R
    gripper       absolute, dimensionless: +1 open, -1 closed
A robot that is controlled by its joints has d<joint> (rad, change of the commanded joint) in place of the first six.
"""

import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Mapping, cast

import numpy as np

from tap_ray.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One number of an action or a state."""

    name: str
    unit: str
    low: float
    high: float


def slots(unit: str, low: float, high: float, *names: str) -> tuple[Slot, ...]:
    """Slots that share a unit and a range."""
    return tuple(Slot(name=name, unit=unit, low=low, high=high) for name in names)


@dataclass(frozen=True, kw_only=True)
class ArmSlots:
    """Where one arm's end effector is in a robot's numbers; empty (or None) where the robot has no such slots.

    Usable as an index of the last axis: `state[..., arm.ee_pos]`.
    """

    side: str = ""
    """Prefix of the names of its slots: a key of SIDES, or empty for a robot with one arm."""
    ee_pos: tuple[int, ...] = ()
    """Indices in the state of x y z, m, table frame."""
    ee_quat: tuple[int, ...] = ()
    """Indices in the state of the quaternion w x y z."""
    opening: int | None = None
    """Index in the state of the gripper's opening, 0 closed .. 1 open."""
    delta_pos: tuple[int, ...] = ()
    """Indices in the action of the change of the commanded position, m; empty if actions move joints."""
    delta_rot: tuple[int, ...] = ()
    """Indices in the action of the change of the commanded orientation, axis-angle, rad; likewise."""
    gripper: int | None = None
    """Index in the action of the gripper, +1 open, -1 closed."""


ONE_CAMERA = ("main",)
"""Default cameras of a robot."""


@dataclass(frozen=True, kw_only=True)
class RobotSpec:
    """The interface of one embodiment, which environment, dataset and policy all contain."""

    robot: str
    """Embodiment, e.g. "widowx"."""
    action: tuple[Slot, ...]
    """Slots of the action, in order."""
    state: tuple[Slot, ...]
    """Slots of the proprioception, in order."""
    control_hz: float = 5.0
    """Control rate: actions per second, Hz."""
    action_frame: str = "base"
    """Frame of the translation and the rotation in an action."""
    action_mode: str = "delta_target"
    """"delta_target": change of the commanded pose; "delta_target_joints": of the commanded joints."""
    rotation: str = "axis_angle_left"
    """R_next = exp([dr]) R."""
    quaternion: str = "wxyz"
    """Order of the quaternion in the state, scalar part non-negative."""
    gripper: str = "+1 open, -1 closed"
    """Meaning of the gripper slot of an action."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """Names of the cameras whose images come with each state. The first is "rgb", the others are "extra_rgb" in this
    order; what is cut out of images (crops, masks) comes from the first."""

    def __post_init__(self) -> None:
        wrong = [name for name in self.cameras if not re.fullmatch("[a-z0-9_]+", name) or name == "robot_mask"]
        if wrong or not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise SpecError(
                "cameras must name at least one camera, each once, with lower-case letters, digits and _, and none "
                f"may be called robot_mask; got {list(self.cameras)}."
            )

    @property
    def action_low_A(self) -> np.ndarray:
        """(A,) float32, smallest action."""
        return np.array([slot.low for slot in self.action], np.float32)

    @property
    def action_high_A(self) -> np.ndarray:
        """(A,) float32, largest action."""
        return np.array([slot.high for slot in self.action], np.float32)

    @cached_property
    def arms(self) -> tuple[ArmSlots, ...]:
        """The slots of each arm's end effector, the left arm first; empty if no slot belongs to an end effector."""
        found = [_arm(self, side) for side in ("", *SIDES)]
        return tuple(arm for arm in found if arm != ArmSlots(side=arm.side))

    @property
    def grippers(self) -> tuple[int, ...]:
        """Index in the action of each arm's gripper."""
        return tuple(arm.gripper for arm in self.arms if arm.gripper is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse. A single camera with the default name is left out."""
        values = asdict(self)
        if self.cameras == ONE_CAMERA:  # older specs do not mention cameras, and their hashes must not change
            del values["cameras"]
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "A robot spec") -> "RobotSpec":
        """Inverse of `to_json`. `where` names the source in messages, e.g. "runs/tap/final/spec.json".

        Raises:
            SpecError: a field is missing or unknown (written by another version).
        """
        known = {field.name for field in fields(cls)}
        data = {"cameras": list(ONE_CAMERA), **data}
        if set(data) != known:
            wrong = [f"lacks {name!r}" for name in sorted(known - set(data))]
            wrong += [f"has an unknown field {name!r}" for name in sorted(set(data) - known)]
            raise SpecError(
                f"{where} {' and '.join(wrong)}. A robot spec has the fields {', '.join(sorted(known))}. "
                "It was written by another version of tap_ray: collect or train again with this one."
            )
        values = dict(data)
        for key in ("action", "state"):
            values[key] = tuple(Slot(**slot) for slot in values[key])
        values["cameras"] = tuple(values["cameras"])
        return cls(**values)


def require_compatible(have: RobotSpec, want: RobotSpec, *, have_name: str, want_name: str) -> None:
    """Raise unless `have` and `want` agree on every field.

    Args:
        have: what one side emits.
        want: what the other side expects.
        have_name: name of the first side in messages, e.g. "dataset play/".
        want_name: likewise for the second, e.g. "policy runs/align".

    Raises:
        SpecError: lists each field that differs, with both values.
    """
    differences = [
        f"  {field.name}: {have_name} has {_short(getattr(have, field.name))}, "
        f"{want_name} has {_short(getattr(want, field.name))}"
        for field in fields(RobotSpec)
        if getattr(have, field.name) != getattr(want, field.name)
    ]
    if differences:
        raise SpecError(
            f"{have_name} and {want_name} do not match:\n"
            + "\n".join(differences)
            + "\nUse data and a policy of the same robot and conventions; jobs.import_dataset --like imports "
            "recordings with the conventions of another dataset."
        )


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    items = cast(tuple[Slot | str, ...], value)
    shown = (s if isinstance(s, str) else f"{s.name} ({s.unit}) {s.low:g}..{s.high:g}" for s in items)
    return "[" + ", ".join(shown) + "]"


MAX_DELTA_POS_M = 0.05
"""Largest commanded translation per control step and axis, m: 0.25 m/s at 5 Hz."""
MAX_DELTA_ROT_RAD = 0.3
"""Largest commanded rotation per control step and axis, rad: 1.5 rad/s at 5 Hz."""

EE_DELTA_ACTION = (
    *slots("m", -MAX_DELTA_POS_M, MAX_DELTA_POS_M, "dx", "dy", "dz"),
    *slots("rad", -MAX_DELTA_ROT_RAD, MAX_DELTA_ROT_RAD, "drx", "dry", "drz"),
    *slots("1", -1.0, 1.0, "gripper"),
)
"""As in arXiv 2607.02466: delta xyz (m), delta axis-angle (rad), gripper."""

EE_POSE_STATE = (
    *slots("m", -1.5, 1.5, "ee_x", "ee_y", "ee_z"),
    *slots("1", -1.0, 1.0, "ee_qw", "ee_qx", "ee_qy", "ee_qz"),
)
"""End-effector (tool center point between the finger tips) pose in the table frame, quaternion wxyz. Its axes
are those of the base; a robot's base stands somewhere in it (envs/robots.py), the WidowX's in its origin."""


EE_SLOTS: Mapping[str, tuple[str, ...]] = {
    "ee_pos": tuple(slot.name for slot in EE_POSE_STATE[:3]),
    "ee_quat": tuple(slot.name for slot in EE_POSE_STATE[3:]),
    "opening": ("gripper_opening",),
    "delta_pos": tuple(slot.name for slot in EE_DELTA_ACTION[:3]),
    "delta_rot": tuple(slot.name for slot in EE_DELTA_ACTION[3:6]),
    "gripper": ("gripper",),
}
"""Fields of `ArmSlots` and the names of their slots, behind the arm's side."""


def _arm(spec: RobotSpec, side: str) -> ArmSlots:
    """The slots of the arm whose names begin with `side`; incomplete groups are left empty."""
    state, action = ({slot.name: n for n, slot in enumerate(slots)} for slots in (spec.state, spec.action))
    found: dict[str, tuple[int, ...]] = {}
    for part, names in EE_SLOTS.items():
        have = state if part in ("ee_pos", "ee_quat", "opening") else action
        needed = [side + name for name in names]
        found[part] = tuple(have[name] for name in needed) if have.keys() >= set(needed) else ()
    opening, gripper = (next(iter(found.pop(part)), None) for part in ("opening", "gripper"))
    return ArmSlots(side=side, opening=opening, gripper=gripper, **found)


def missing_slots(spec: RobotSpec, *parts: str) -> list[str]:
    """Names of the slots that an arm of a robot lacks.

    Args:
        spec: interface of the robot.
        parts: fields of `ArmSlots`.
    """
    have = {slot.name for slot in (*spec.state, *spec.action)}
    needed = [arm.side + name for arm in spec.arms or (ArmSlots(),) for part in parts for name in EE_SLOTS[part]]
    return [name for name in needed if name not in have]


ARMS, JOINTS = 2, 7
"""The unified layout has slots for two arms with seven joints each."""
UNIFIED_ACTION = tuple(
    f"arm{arm}/{name}"
    for arm in range(ARMS)
    for name in (*(slot.name for slot in EE_DELTA_ACTION[:6]), *(f"dq{j + 1}" for j in range(JOINTS)), "gripper")
)
"""Meaning of each dim of a unified action: for each arm the end effector's motion, the joints' motion, and the
gripper."""
UNIFIED_STATE = tuple(
    f"arm{arm}/{name}"
    for arm in range(ARMS)
    for name in (*(f"q{j + 1}" for j in range(JOINTS)), "gripper_opening", *(slot.name for slot in EE_POSE_STATE))
)
"""Meaning of each dim of a unified state: for each arm the joints, the gripper's opening, and the tool pose."""
SIDES = {"left_": 0, "right_": 1}
"""Prefix of a slot's name -> arm; a slot without one of them belongs to arm 0."""


def unified_indices(slots: tuple[Slot, ...], layout: tuple[str, ...]) -> tuple[int, ...]:
    """The dim of each slot of a robot's action or state in the unified layout; all other dims are padding.

    Args:
        slots: `RobotSpec.action` or `RobotSpec.state`.
        layout: UNIFIED_ACTION or UNIFIED_STATE.

    Raises:
        SpecError: a slot has no dim in the layout; the message names it.
    """
    joint = "dq" if layout is UNIFIED_ACTION else "q"
    places: list[int] = []
    num_joints = [0] * ARMS
    for slot in slots:
        side = next((side for side in SIDES if slot.name.startswith(side)), "")
        arm, name = SIDES.get(side, 0), slot.name.removeprefix(side)
        if f"arm{arm}/{name}" not in layout and slot.unit == "rad":
            num_joints[arm] += 1
            name = f"{joint}{num_joints[arm]}"
        if f"arm{arm}/{name}" not in layout:
            raise SpecError(
                f"Slot {slot.name!r} ({slot.unit}) does not fit into the unified layout, which has {ARMS} arms with "
                f"{JOINTS} joints, end-effector motions or poses, and grippers. Extend specs.py, or omit this robot."
            )
        places.append(layout.index(f"arm{arm}/{name}"))
    return tuple(places)
