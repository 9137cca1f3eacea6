"""Defines what the columns of a foreign dataset mean, in a small YAML file.

    robot: so100
    camera: observation.images.front
    control_hz: 5
    state:
      - {slots: [q1, q2, q3, q4, q5], column: observation.state, at: [0, 1, 2, 3, 4], unit: deg}
      - {slots: [gripper_opening], column: observation.state, at: [5], unit: gripper, closed: 0, open: 100}
    action:
      - {slots: [dq1, dq2, dq3, dq4, dq5], column: action, at: [0, 1, 2, 3, 4], unit: deg, kind: absolute}
      - {slots: [gripper], column: action, at: [5], unit: gripper, closed: 0, open: 100, kind: absolute}

In place of `camera` several, each with a name of ours: `cameras: {base: observation.images.front, wrist: ...}`. Slots
are named as in `tap_ray/specs.py`: dx dy dz (m) and drx dry drz (rad) of the end effector, d<joint> (rad), gripper.
"""

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tap_ray.config import digest, to_dict
from tap_ray.errors import ConfigError, nearest
from tap_ray.importing.source import Source
from tap_ray.specs import ONE_CAMERA, RobotSpec, Slot

FACTORS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "rad": 1.0, "deg": np.pi / 180, "1": 1.0}
"""Unit of the source -> factor to our unit."""
UNITS = {"m": "m", "cm": "m", "mm": "m", "rad": "rad", "deg": "rad", "1": "1", "gripper": "1"}
"""Unit of the source -> ours."""
ROTATIONS = {"rotation_vector": 3, "euler_xyz": 3, "quaternion_wxyz": 4, "quaternion_xyzw": 4}
"""Rotation formats of a source -> how many numbers each has."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Some numbers of a column, and the slots that they become."""

    slots: tuple[str, ...]
    """Names of our slots, in order."""
    column: str
    """Name of the source's column."""
    at: tuple[int, ...]
    """Positions in the column, from 0 on."""
    unit: Literal["m", "cm", "mm", "rad", "deg", "1", "gripper"] = "1"
    """Unit of the source. With "gripper", `closed` and `open` give the numbers of its ends."""
    scale: float = 1.0
    """Value of 1 in this unit, if the source's numbers are normalized."""
    closed: float = 0.0
    """The column's number for a closed gripper."""
    open: float = 1.0
    """The column's number for an open gripper."""
    rotation: str = ""
    """"rotation_vector", "euler_xyz" (about fixed axes), "quaternion_wxyz" or "quaternion_xyzw"; empty: no rotation."""
    kind: Literal["delta", "absolute"] = "delta"
    """Actions only. "absolute": where to be; its change over a control step becomes the action. "delta": the change
    itself, and those of the frames in a control step are added up. A gripper is always absolute."""

    def __post_init__(self) -> None:
        if self.rotation and self.rotation not in ROTATIONS:
            raise ConfigError(f"Unknown rotation {self.rotation!r}. {nearest(self.rotation, ROTATIONS)}")
        count = ROTATIONS[self.rotation] if self.rotation else len(self.slots)
        if len(self.at) != count or (self.rotation and len(self.slots) not in (3, 4)):
            raise ConfigError(
                f"slots {list(self.slots)} of {self.column!r} need {count} positions in 'at'; got {list(self.at)}."
            )
        if self.unit == "gripper" and self.open == self.closed:
            raise ConfigError(f"slots {list(self.slots)}: 'open' and 'closed' must differ; both are {self.open:g}.")

    @property
    def gripper(self) -> bool:
        """Whether they are grippers."""
        return self.unit == "gripper"


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """What the columns of a foreign dataset mean."""

    robot: str
    """Name of the embodiment in our dataset."""
    camera: str = ""
    """The source's camera, if it becomes the dataset's only one, "main"; for several cameras use `cameras`."""
    cameras: typing.Mapping[str, str] = field(default_factory=dict)
    """Our name -> the source's camera, for one or several; crops are cut from the first."""
    state: tuple[Numbers, ...] = ()
    """Slots of the proprioception; without any, the dataset is a video."""
    action: tuple[Numbers, ...] = ()
    """Slots of the action that was commanded after each frame; without any, jobs.label can predict the actions."""
    instruction: str | None = None
    """Column with the instruction; None: the source's own; "": play, without language."""
    sentence: str = ""
    """The instruction of all episodes, instead of a column."""
    control_hz: float = 5.0
    """Actions per second of our dataset, Hz; at most the source's frames per second."""
    fps: float | None = None
    """Frames per second of the source, Hz; None: as in its metadata. RLDS has no such metadata, so it is required
    there."""
    origin_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the origin of our table frame lies in the source's coordinates: the state's ee_x ee_y ee_z are counted from
    there. As in an adapter (docs/how-to/environment.md)."""
    tool_quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """wxyz: turns our tool frame (x out of the gripper, y to the left finger) into the source's. Likewise."""
    image_size: int = 96
    """Side of the square images, px: the central square of the source's, resized."""
    image_turn_deg: Literal[0, 180] = 0
    """180 rotates images that are upside down."""

    def __post_init__(self) -> None:
        if bool(self.camera) == bool(self.cameras):
            raise ConfigError(
                "A mapping needs either 'camera' (for a single camera) or 'cameras' (our name: the source's name), "
                "but not both."
            )
        for role in ("state", "action"):
            names = [slot for numbers in getattr(self, role) for slot in numbers.slots]
            if len(set(names)) < len(names):
                raise ConfigError(f"'{role}' must name each slot once; got {names}.")

        if abs(float(np.linalg.norm(self.tool_quat)) - 1) > 1e-3:
            raise ConfigError(f"tool_quat must be a quaternion of length 1 (w x y z); got {list(self.tool_quat)}.")

    @property
    def camera_of(self) -> dict[str, str]:
        """Our name of each camera -> the source's, in order."""
        return dict(self.cameras) or {ONE_CAMERA[0]: self.camera}

    def to_json(self) -> dict[str, Any]:
        """Plain values. Empty `cameras` are left out, as in versions without that field."""
        values = to_dict(self)
        return values if self.cameras else {name: value for name, value in values.items() if name != "cameras"}

    def hash(self) -> str:
        """A hash of the mapping's meaning."""
        return digest(self.to_json())


def require_fits(mapping: Mapping, source: Source) -> None:
    """Raise a ConfigError if a mapping names something that the source lacks; the message lists what it has."""
    for camera in mapping.camera_of.values():
        if camera not in source.cameras:
            known = ", ".join(source.cameras) or "no camera"
            raise ConfigError(f"The source has no camera {camera!r}; it has {known}.")
    for role in ("state", "action"):
        for numbers in getattr(mapping, role):
            column = source.columns.get(numbers.column)
            if column is None:
                raise ConfigError(
                    f"{role}: the source has no column {numbers.column!r}. {nearest(numbers.column, source.columns)}"
                )
            if max(numbers.at) >= column.size or min(numbers.at) < 0:
                raise ConfigError(
                    f"{role}: column {numbers.column!r} has {column.size} numbers {list(column.names) or ''}; "
                    f"'at' asks for {list(numbers.at)}, and counts from 0."
                )
    fps = mapping.fps or source.fps
    if not fps:
        raise ConfigError(
            "The source does not say how many frames per second it has (RLDS has no such field). Set 'fps' in the "
            "mapping. Bridge has 5, DROID 15, LIBERO 20."
        )
    if not 0 < mapping.control_hz <= fps:
        raise ConfigError(f"control_hz must be in 0 .. {fps:g} (the source's fps); got {mapping.control_hz:g}.")


def slots_of(groups: tuple[Numbers, ...]) -> dict[str, str]:
    """Slot -> unit, in the mapping's order."""
    return {
        name: "rad" if group.rotation and len(group.slots) == 3 else UNITS[group.unit]
        for group in groups
        for name in group.slots
    }


def require_like(mapping: Mapping, like: RobotSpec) -> None:
    """Raise a ConfigError if a mapping does not give the slots and conventions of the robot of --like. Additional slots
    are allowed."""
    conventions = {"robot": mapping.robot, "control_hz": mapping.control_hz, "action_mode": mode_of(mapping)}
    conventions["cameras"] = tuple(mapping.camera_of)
    wrong = [
        f"{name}: {value!r} in the mapping, {getattr(like, name)!r} there"
        for name, value in conventions.items()
        if value != getattr(like, name)
    ]
    for role in ("state", "action"):
        have, needed = (
            slots_of(getattr(mapping, role)),
            {slot.name: slot.unit.split()[0] for slot in getattr(like, role)},
        )
        wrong += [
            f"{role}: the mapping has no slot {name} ({unit})" for name, unit in needed.items() if name not in have
        ]
        wrong += [
            f"{role}: {name} has the unit {have[name]} in the mapping, {unit} there"
            for name, unit in needed.items()
            if have.get(name, unit) != unit
        ]
    if wrong:
        raise ConfigError(
            "The mapping does not match the robot of --like:\n  "
            + "\n  ".join(wrong)
            + "\nComplete the mapping. If the source lacks some of these data, omit --like; policies trained on the "
            "new dataset then are for its own robot."
        )


def mode_of(mapping: Mapping) -> str:
    """`RobotSpec.action_mode`: whether actions move the end effector or joints."""
    return "delta_target" if any(name.endswith("dx") for name in slots_of(mapping.action)) else "delta_target_joints"


def spec_of(mapping: Mapping, low_high: dict[str, tuple[float, float]]) -> RobotSpec:
    """The robot's interface; `low_high` is slot -> the range of its numbers."""

    def slots(groups: tuple[Numbers, ...]) -> tuple[Slot, ...]:
        ranges = ((name, unit, *low_high[name]) for name, unit in slots_of(groups).items())
        return tuple(Slot(name=name, unit=unit, low=low, high=high) for name, unit, low, high in ranges)

    return RobotSpec(
        robot=mapping.robot,
        action=slots(mapping.action),
        state=slots(mapping.state),
        control_hz=mapping.control_hz,
        action_mode=mode_of(mapping),
        cameras=tuple(mapping.camera_of),
    )
