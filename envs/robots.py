"""Defines the embodiments: the constants of each robot, and its interface. No simulator is imported here."""

from dataclasses import dataclass, replace
from math import pi, radians
from pathlib import Path
from typing import Literal

from tap_ray.plugins import Registry
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec, Slot, slots

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, kw_only=True)
class ArmLengths:
    """Distances between the axes of a 6-joint arm with a spherical wrist, m. See the robot's URDF for their source."""

    shoulder_z_m: float
    """Height of the shoulder's axis above the base."""
    elbow_x_m: float
    """Forward offset of the elbow when the upper arm points up."""
    elbow_z_m: float
    """Length of the upper arm."""
    wrist_x_m: float
    """Distance from the elbow to the center of the wrist, along the forearm."""
    tool_x_m: float
    """Distance from the center of the wrist to the tool center point."""


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """A parallel gripper that is added to an arm of another package."""

    palm_m: tuple[float, float, float]
    """Sides of the palm, the first along the flange's axis."""
    finger_m: tuple[float, float, float]
    """Sides of a finger: along it, across (the direction in which it moves), and depth."""
    tool_x_m: float
    """Distance from the flange to the tool center point."""
    open_m: float
    """Travel of each finger."""
    force_n: float


@dataclass(frozen=True, kw_only=True)
class PyBulletDataArm:
    """An arm of the package pybullet_data, to which a gripper is added."""

    flange: str
    """Link that carries the gripper; its z axis points outwards."""
    gripper_yaw_rad: float
    """Rotation of the gripper about that axis."""
    rgb: tuple[tuple[float, float, float], ...]
    """Colors of the links, in turn."""


@dataclass(frozen=True, kw_only=True)
class ArmModel:
    """Constants of one arm. Lengths, limits, speeds and efforts are the manufacturer's (source: its URDF)."""

    name: str
    urdf: str
    """URDF file in envs/assets or, for arms of that package, in pybullet_data; for a robot of another package its whole
    path."""
    data_arm: PyBulletDataArm | None = None
    gripper: Gripper | None = None
    base_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position of the base in the table frame (parallel axes). Poses outside kinematics are in the table's frame, so
    that objects lie at the same places for all robots; the WidowX stands in its origin."""
    joint: tuple[str, ...]
    """Joints of the arm, from the base."""
    joint_low_rad: tuple[float, ...]
    joint_high_rad: tuple[float, ...]
    joint_speed_rad_s: float
    """Velocity limit of every joint."""
    joint_effort_nm: tuple[float, ...]
    lengths: ArmLengths | None = None
    """Lengths for the closed-form kinematics; None: kinematics are solved numerically."""
    finger: tuple[str, str] = ("left_finger", "right_finger")
    """The two sliding joints, left then right; both open towards larger values."""
    finger_open_m: float
    """Travel of each finger; the opening is twice as wide."""
    finger_speed_m_s: float
    finger_force_n: float
    tool_link: str
    """Link whose frame is the tool center point: x out of the gripper, y towards the left finger."""
    home_rad: tuple[float, ...]
    """Joints at the start of an episode, before noise."""
    home_noise_rad: float = 0.02
    """Standard deviation of the noise on the initial joints; 0 gives every episode the same joints."""
    workspace_low_m: tuple[float, float, float] = (0.16, -0.22, 0.012)
    """Corner of the box that the commanded tool position stays in, table frame."""
    workspace_high_m: tuple[float, float, float] = (0.42, 0.22, 0.26)
    max_tilt_rad: float = 0.6
    """Largest angle between the tool's axis and straight down."""


@dataclass(frozen=True, kw_only=True)
class RobotModel:
    """An embodiment: one arm, or several that share a table."""

    name: str
    arm: tuple[ArmModel, ...]
    side: tuple[str, ...] = ("",)
    """Prefix of the names of each arm's slots."""
    control: Literal["end_effector", "joints"] = "end_effector"
    """What an action moves: the commanded tool poses, or the commanded joints."""


def robot(name: str) -> RobotModel:
    """The model called `name`.

    Raises:
        ConfigError: there is no such robot (the message names the nearest), or the package that provides it is broken.
    """
    return ROBOTS[name]


def spec_of(model: RobotModel) -> RobotSpec:
    """Interface of `model`. Actions of each arm: motion of the end effector or joints, and gripper. State of each arm:
    joints, gripper opening, tool pose."""
    ee_spec = RobotSpec(
        robot=model.name,
        action=ee_action_slots(model),
        state=tuple(slot for arm, side in zip(model.arm, model.side, strict=True) for slot in _state(arm, side)),
    )
    if model.control == "end_effector":
        return ee_spec
    turns = tuple(
        slot for arm, side in zip(model.arm, model.side, strict=True) for slot in _turns(arm, side, ee_spec.control_hz)
    )
    joints = {"action_mode": "delta_target_joints", "action_frame": "joints", "rotation": "none"}
    return replace(ee_spec, action=turns, **joints)


WRIST_M = (-0.06, 0.0, -0.11)
"""Position of a wrist camera, m, tool frame (x out of the gripper, y to the left finger): behind the fingers, on the
robot's side, like a camera on a bracket at the flange."""
WRIST_TARGET_M = (0.025, 0.0, -0.01)
"""Point that it looks at, m, tool frame: a little in front of the finger tips."""
WRIST_FOV_DEG = 70.0


def wrist_cameras(model: RobotModel) -> dict[str, int]:
    """Name of each wrist camera -> index of its arm: "wrist", or for two arms "left_wrist" and "right_wrist"."""
    return {f"{side}wrist": number for number, side in enumerate(model.side)}


def ee_action_slots(model: RobotModel) -> tuple[Slot, ...]:
    """Slots of an action that moves the end effectors, whatever the robot's own actions are."""
    return tuple(replace(slot, name=side + slot.name) for side in model.side for slot in EE_DELTA_ACTION)


def _state(arm: ArmModel, side: str) -> tuple[Slot, ...]:
    joints = [
        Slot(name=side + name, unit="rad", low=low, high=high)
        for name, low, high in zip(arm.joint, arm.joint_low_rad, arm.joint_high_rad, strict=True)
    ]
    opening = slots("1 (0 closed, 1 open)", 0.0, 1.0, f"{side}gripper_opening")
    return (*joints, *opening, *(replace(slot, name=side + slot.name) for slot in EE_POSE_STATE))


def _turns(arm: ArmModel, side: str, control_hz: float) -> tuple[Slot, ...]:
    most = arm.joint_speed_rad_s / control_hz
    return (*slots("rad", -most, most, *(f"{side}d{name}" for name in arm.joint)), *slots("1", -1, 1, f"{side}gripper"))


WIDOWX = ArmModel(
    name="widowx",
    urdf="widowx.urdf",
    joint=("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
    joint_low_rad=(-pi, radians(-108), radians(-123), -pi, radians(-100), -pi),
    joint_high_rad=(pi, radians(114), radians(92), pi, radians(123), pi),
    joint_speed_rad_s=pi,
    joint_effort_nm=(10, 20, 15, 2, 5, 1),
    lengths=ArmLengths(
        shoulder_z_m=0.072 + 0.03865,
        elbow_x_m=0.04975,
        elbow_z_m=0.25,
        wrist_x_m=0.175 + 0.075,
        tool_x_m=0.065 + 0.043 + 0.023 + 0.027575,
    ),
    finger_open_m=0.037,
    finger_speed_m_s=0.2,
    finger_force_n=5.0,
    tool_link="ee_gripper_link",
    home_rad=(0.0, -0.1516, 0.2587, 0.0, 1.4637, 0.0),
)

PANDA = ArmModel(
    name="panda",
    urdf="franka_panda/panda.urdf",
    # Franka Emika Panda data sheet: Franka Hand, 40 mm a finger, tool center point 103.4 mm from the flange.
    data_arm=PyBulletDataArm(
        flange="panda_link8", gripper_yaw_rad=0.75 * pi, rgb=((0.92, 0.92, 0.9), (0.78, 0.79, 0.8))
    ),
    gripper=Gripper(
        palm_m=(0.062, 0.12, 0.05), finger_m=(0.05, 0.012, 0.022), tool_x_m=0.1034, open_m=0.04, force_n=5.0
    ),
    base_m=(-0.32, 0.0, 0.0),
    joint=tuple(f"panda_joint{number}" for number in range(1, 8)),
    joint_low_rad=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    joint_high_rad=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    joint_speed_rad_s=2.175,
    joint_effort_nm=(87, 87, 87, 87, 12, 12, 12),
    finger_open_m=0.04,
    finger_speed_m_s=0.2,
    finger_force_n=5.0,
    tool_link="ee_link",
    home_rad=(0.0, 0.3649, 0.0, -2.0697, 0.0, 2.4345, 0.7854),
)

XARM6 = ArmModel(
    name="xarm6",
    urdf="xarm/xarm6_robot.urdf",
    # UFACTORY xArm 6 user manual: xArm Gripper, stroke 84 mm, tool center point 172 mm from the flange.
    data_arm=PyBulletDataArm(flange="link6", gripper_yaw_rad=pi, rgb=((0.9, 0.9, 0.92), (0.55, 0.57, 0.6))),
    gripper=Gripper(
        palm_m=(0.125, 0.1, 0.05), finger_m=(0.055, 0.012, 0.024), tool_x_m=0.172, open_m=0.042, force_n=5.0
    ),
    base_m=(-0.12, 0.0, 0.0),
    joint=tuple(f"joint{number}" for number in range(1, 7)),
    joint_low_rad=(-2 * pi, -2.059, -3.927, -2 * pi, -1.69297, -2 * pi),
    joint_high_rad=(2 * pi, 2.0944, 0.19198, 2 * pi, pi, 2 * pi),
    joint_speed_rad_s=pi,
    joint_effort_nm=(50, 50, 32, 32, 32, 20),
    finger_open_m=0.042,
    finger_speed_m_s=0.1,
    finger_force_n=5.0,
    tool_link="ee_link",
    home_rad=(0.0, -0.2176, -0.7288, 0.0, 0.9464, 0.0),
)

IIWA = ArmModel(
    name="iiwa",
    urdf="kuka_iiwa/model.urdf",
    # KUKA LBR iiwa 14 R820 data sheet: its slowest axis turns 75 degrees/s; the flange is 45 mm beyond link 7. The
    # gripper has the stroke of a Schunk WSG 50 (110 mm).
    data_arm=PyBulletDataArm(flange="lbr_iiwa_link_7", gripper_yaw_rad=0.0, rgb=((0.95, 0.5, 0.1), (0.6, 0.6, 0.62))),
    gripper=Gripper(palm_m=(0.13, 0.13, 0.05), finger_m=(0.06, 0.012, 0.024), tool_x_m=0.18, open_m=0.055, force_n=5.0),
    base_m=(-0.28, 0.0, 0.0),
    joint=tuple(f"lbr_iiwa_joint_{number}" for number in range(1, 8)),
    joint_low_rad=tuple(-radians(most) for most in (170, 120, 170, 120, 170, 120, 175)),
    joint_high_rad=tuple(radians(most) for most in (170, 120, 170, 120, 170, 120, 175)),
    joint_speed_rad_s=radians(75),
    joint_effort_nm=(320, 320, 176, 176, 110, 40, 40),
    finger_open_m=0.055,
    finger_speed_m_s=0.2,
    finger_force_n=5.0,
    tool_link="ee_link",
    home_rad=(0.0, 0.6731, 0.0, -1.6641, 0.0, 0.8044, 0.0),
)

BUILT_IN: dict[str, RobotModel] = {
    "widowx": RobotModel(name="widowx", arm=(WIDOWX,)),
    "panda": RobotModel(name="panda", arm=(PANDA,)),
    "xarm6": RobotModel(name="xarm6", arm=(XARM6,)),
    "iiwa": RobotModel(name="iiwa", arm=(IIWA,), control="joints"),
    "widowx_pair": RobotModel(
        name="widowx_pair",
        arm=(
            replace(WIDOWX, base_m=(0.0, 0.14, 0.0), workspace_low_m=(0.16, -0.16, 0.012)),
            replace(WIDOWX, base_m=(0.0, -0.14, 0.0), workspace_high_m=(0.42, 0.16, 0.26)),
        ),
        side=("left_", "right_"),
    ),
}

ROBOTS = Registry("robot", BUILT_IN, expected=RobotModel)
"""All embodiments, those of installed packages included."""
