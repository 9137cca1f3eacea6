"""Defines what a foreign environment's observation, action and info mean: a small YAML file, or an `Adapter` in Python.

    env: gymnasium_robotics:FetchPush-v4        # a Gymnasium id (module:id imports the module first), or module:factory
    robot: fetch
    camera: render                              # env.render(), or a column of the observation: sensor_data.cam.rgb
    repeat: 5                                   # of its steps in one of ours
    origin_m: [1.05, 0.75, 0.40]                # where our table frame's origin lies in its coordinates
    state:
      - {slots: [ee_x, ee_y, ee_z], column: observation, at: [0, 1, 2]}
      - {slots: [ee_qw, ee_qx, ee_qy, ee_qz], constant: [0.70711, 0, 0.70711, 0]}
    action:
      - {slots: [dx, dy, dz], at: [0, 1, 2], scale: 0.05}      # 1 in its action is 0.05 m
    success: is_success                         # a flag of its info

Slots are named as in tap_ray/specs.py. A feature whose data is omitted is switched off: see `Adapter.missing`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Mapping, TypeVar

import numpy as np
import yaml

from tap_ray.errors import ConfigError, nearest
from tap_ray.plugins import load_reference
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, ONE_CAMERA, RobotSpec, Slot

T = TypeVar("T")
MIN_DETERMINANT = 1e-9
"""Below this a camera lies in the plane of the table."""
RENDER = "render"
"""Name of the camera of env.render()."""
SHIPPED = Path(__file__).parent / "adapters"
KNOWN_SLOTS = {slot.name: slot for slot in (*EE_POSE_STATE, *EE_DELTA_ACTION)} | {
    "gripper_opening": Slot(name="gripper_opening", unit="1 (0 closed, 1 open)", low=0.0, high=1.0)
}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Some numbers of its observation or action, and our slots for them."""

    slots: tuple[str, ...]
    """Names of our slots, in order."""
    column: str = ""
    """State only: where in the observation, "agent.qpos" for nested ones; empty: the observation itself."""
    at: tuple[int, ...] = ()
    """Indices in the column, from 0 on; if none are given, the first ones."""
    scale: float = 1.0
    """Value of 1 in our unit: m, rad, 1."""
    closed: float | None = None
    """For a gripper: its number when closed."""
    open: float | None = None
    """For a gripper: its number when open."""
    constant: tuple[float, ...] = ()
    """State only: constant values, in our unit."""
    unit: str = "rad"
    """Unit of slots that tap_ray/specs.py does not name, e.g. joints."""
    most: float = 10.0
    """Largest absolute value of those slots."""

    def __post_init__(self) -> None:
        if (self.closed is None) != (self.open is None) or (self.closed is not None and self.closed == self.open):
            raise ConfigError(f"slots {list(self.slots)}: 'closed' and 'open' must both be given, and must differ.")
        for name in ("at", "constant"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.slots):
                raise ConfigError(
                    f"{name!r} needs one number for each of the slots {list(self.slots)}; got {getattr(self, name)}."
                )

    @property
    def positions(self) -> tuple[int, ...]:
        """Indices of the numbers."""
        return self.at or tuple(range(len(self.slots)))

    def specs(self) -> tuple[Slot, ...]:
        """Name, unit and range of each slot."""
        return tuple(
            KNOWN_SLOTS.get(name) or Slot(name=name, unit=self.unit, low=-self.most, high=self.most)
            for name in self.slots
        )


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object whose pose the environment reports; privileged, as in `info["object_pose"]`."""

    name: str
    column: str = ""
    at: tuple[int, ...] = (0, 1, 2)
    """x y z, its coordinates; or seven, with a quaternion wxyz."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The meaning of an environment's numbers."""

    env: str
    """Gymnasium id, or module:factory."""
    robot: str
    """Name of the embodiment in datasets."""
    action: tuple[Numbers, ...]
    """Meaning of the numbers of its action; all others stay 0."""
    state: tuple[Numbers, ...]
    """Sources of the slots of our state."""
    camera: str = ""
    """"render" (the default), or a column of the observation, (Y, X, 3) uint8; for several cameras use `cameras`."""
    cameras: Mapping[str, str] | None = None
    """Our name -> the same, for one camera or several; masks belong to the first."""
    task: str = "foreign"
    """Name of its task."""
    instruction: tuple[str, ...] = ("do the task",)
    """Instructions of the task, drawn by the seed."""
    kwargs: Mapping[str, Any] | None = None
    """Keyword arguments of gymnasium.make or the factory."""
    repeat: int = 1
    """Number of its steps in one of ours; a motion is divided among them."""
    control_hz: float = 5.0
    """Our steps per second, Hz: its own rate divided by `repeat`."""
    origin_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the origin of our table frame (x away from the robot, y to its left, z up) lies in its coordinates."""
    workspace_low_m: tuple[float, float, float] = (0.16, -0.22, 0.012)
    """Corners of the box that the tool can reach, table frame: safe poses are drawn there."""
    workspace_high_m: tuple[float, float, float] = (0.42, 0.22, 0.26)
    tool_quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """wxyz: turns our tool frame (x out of the gripper, y to the left finger) into its own."""
    objects: tuple[Thing, ...] = ()
    """Objects: the moved object first, then its target."""
    success: str = ""
    """Flag of info that says whether the task is entirely done now."""
    partial: str = ""
    """Flag of info that says whether the task is partly done, e.g. the object is held; without it "partial" equals
    "entire"."""
    contact: str = ""
    """Flag of info that says whether a finger touches an object."""
    robot_mask: str = ""
    """Column of the observation, (Y, X): not 0 where the robot is seen."""
    projection: tuple[float, ...] = ()
    """Calibration of the first camera: the 12 numbers, row by row, of the matrix K [R | t] that takes a point x y z 1
    of our table frame (m) to column w, row w, w of its own image (px, before it is cut to a square; pixel centers are
    whole numbers; w is positive in front of the camera)."""
    expert: str = ""
    """module:Class of a policy that does the task: made with the scene and the number of robots."""

    def __post_init__(self) -> None:
        if self.repeat < 1 or not self.action or not self.state:
            raise ConfigError(
                f"The adapter of {self.env} needs at least one entry in 'state' and in 'action', and 'repeat' must be "
                "at least 1."
            )
        if self.projection:
            self._check_projection()
        if self.camera and self.cameras:
            raise ConfigError(
                f"The adapter of {self.env} has both 'camera' (for a single camera) and 'cameras'. Omit one of them."
            )

    def _check_projection(self) -> None:
        what = f"'projection' of the adapter of {self.env}"
        try:
            numbers = np.array(self.projection, np.float64)
        except (TypeError, ValueError):
            numbers = np.zeros(0)
        if numbers.shape != (12,) or not np.isfinite(numbers).all():
            raise ConfigError(
                f"{what} must be 12 finite numbers, the rows of a 3 x 4 matrix; got {list(self.projection)}."
            )
        middle = (np.array(self.workspace_low_m) + self.workspace_high_m) / 2
        rows_34 = numbers.reshape(3, 4)
        if not rows_34[2] @ [*middle, 1.0] > 0 or abs(np.linalg.det(rows_34[:, [0, 1, 3]])) < MIN_DETERMINANT:
            raise ConfigError(
                f"{what} must show the table: w, row 3 times a point x y z 1, must be positive in the middle of "
                "the workspace (if it is negative, change all signs), and the camera must not lie in the plane of the "
                "table."
            )

    @property
    def spec(self) -> RobotSpec:
        """The interface of the robot."""
        state = tuple(slot for part in self.state for slot in part.specs())
        action = tuple(slot for part in self.action for slot in part.specs())
        return RobotSpec(
            robot=self.robot, action=action, state=state, control_hz=self.control_hz, cameras=tuple(self.camera_of)
        )

    @property
    def camera_of(self) -> dict[str, str]:
        """Our name -> "render", or a column of the observation, in order."""
        return dict(self.cameras or {ONE_CAMERA[0]: self.camera or RENDER})

    def to_json(self) -> dict[str, Any]:
        """Plain values; later fields are left out if they are not given, so that an older adapter keeps its digest."""
        values = asdict(self) | ({} if self.cameras else {"camera": self.camera_of[ONE_CAMERA[0]]})
        return {key: value for key, value in values.items() if value or key not in ("cameras", "projection")}

    @property
    def digest(self) -> str:
        """A hash of the adapter, 10 hex digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:10]

    @property
    def missing(self) -> list[str]:
        """The features that it does not define, and what that switches off."""
        off = {
            "success": "evaluation and demonstrations, which need to know when the task is done",
            "contact": "Stage 1's next object and its crops, which need contact",
            "robot_mask": "crops of next objects, images without the robot, and the explorer visual",
            "projection": "the explorer visual",
            "objects": "the explorers contact, curious and mixed, and labels of failures",
            "expert": "demonstrations and --policy expert",
        }
        return [f"{name} (switched off: {what})" for name, what in off.items() if not getattr(self, name)]


def read_adapter(where: str) -> Adapter:
    """The adapter that --env names.

    Args:
        where: a YAML file; module:name of an `Adapter`; or a Gymnasium id whose adapter is shipped with tap_ray.

    Raises:
        ConfigError: there is no such adapter, or it has unknown or missing fields.
    """
    if where.endswith((".yaml", ".yml")):
        return _from_file(Path(where))
    module, _, name = where.rpartition(":")
    if module and name.isidentifier():
        try:
            found = load_reference(where)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"--env {where}: {error}. Give a YAML file, or module:name of an Adapter.") from None
        if isinstance(found, Adapter):
            return found
        raise ConfigError(
            f"--env {where} must name an Adapter (envs/foreign/adapter.py); got an object of type "
            f"{type(found).__name__}."
        )
    shipped = {read.env: read for read in map(_from_file, sorted(SHIPPED.glob("*.yaml")))}
    if where not in shipped:
        raise ConfigError(
            f"tap_ray includes no adapter for {where!r}; it has {', '.join(shipped)}. Write one as in "
            "docs/how-to/environment.md and give its YAML file. `python -m envs.foreign.show ID` prints an "
            "environment's observations and actions."
        )
    return shipped[where]


def _from_file(path: Path) -> Adapter:
    if not path.is_file():
        raise ConfigError(f"The adapter file {path} does not exist. Give a YAML file as in docs/how-to/environment.md.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must contain the fields of an adapter; got a value of type {type(values).__name__}.")
    for name, kind in (("state", Numbers), ("action", Numbers), ("objects", Thing)):
        if name in values:
            values[name] = tuple(_made(kind, each, f"{path}: {name}") for each in values[name])
    return _made(Adapter, values, str(path))


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: unknown field {name!r}. {nearest(name, known)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition(' ')[2]}.") from None
