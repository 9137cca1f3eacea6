"""Embodiments: what is fixed about each robot, and its interface. No simulator is imported here."""

from dataclasses import dataclass
from math import pi, radians
from pathlib import Path

from tap_ray.errors import ConfigError, nearest
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
    """From the elbow to the centre of the wrist, along the forearm."""
    tool_x_m: float
    """From the centre of the wrist to the tool centre point."""


@dataclass(frozen=True, kw_only=True)
class RobotModel:
    """What is fixed about one robot. Lengths, limits, speeds and efforts are the maker's (source: its URDF)."""

    name: str
    urdf: str
    """File in envs/assets."""
    joint: tuple[str, ...]
    """Joints of the arm, from the base."""
    joint_low_rad: tuple[float, ...]
    joint_high_rad: tuple[float, ...]
    joint_speed_rad_s: float
    """Velocity limit of every joint."""
    joint_effort_nm: tuple[float, ...]
    lengths: ArmLengths
    finger: tuple[str, str]
    """The two sliding joints, left then right; both open towards larger values."""
    finger_open_m: float
    """Travel of each finger; the opening is twice as wide."""
    finger_speed_m_s: float
    finger_force_n: float
    tool_link: str
    """Its frame is the tool centre point: x out of the hand, y towards the left finger."""
    home_rad: tuple[float, ...]
    """Joints at the start of an episode, before noise."""
    home_noise_rad: float
    """Standard deviation of the noise on them; 0 starts every episode alike."""
    workspace_low_m: tuple[float, float, float]
    """Corner of the box that the commanded tool position stays in, base frame."""
    workspace_high_m: tuple[float, float, float]
    max_tilt_rad: float
    """Largest angle between the tool's axis and straight down."""


def robot(name: str) -> RobotModel:
    """The model called `name`.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in ROBOTS:
        raise ConfigError(f"Unknown robot {name!r}. {nearest(name, ROBOTS)}")
    return ROBOTS[name]


def spec_of(model: RobotModel) -> RobotSpec:
    """Interface of `model`: 7-D action; state = joints (rad), gripper opening (0 closed .. 1 open), tool pose (7)."""
    joints = [
        Slot(name=name, unit="rad", low=low, high=high)
        for name, low, high in zip(model.joint, model.joint_low_rad, model.joint_high_rad, strict=True)
    ]
    opening = slots("1 (0 closed, 1 open)", 0.0, 1.0, "gripper_opening")
    return RobotSpec(robot=model.name, action=EE_DELTA_ACTION, state=(*joints, *opening, *EE_POSE_STATE))


ROBOTS: dict[str, RobotModel] = {
    "widowx": RobotModel(
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
        finger=("left_finger", "right_finger"),
        finger_open_m=0.037,
        finger_speed_m_s=0.2,
        finger_force_n=5.0,
        tool_link="ee_gripper_link",
        home_rad=(0.0, -0.1516, 0.2587, 0.0, 1.4637, 0.0),
        home_noise_rad=0.02,
        workspace_low_m=(0.16, -0.22, 0.012),
        workspace_high_m=(0.42, 0.22, 0.26),
        max_tilt_rad=0.6,
    ),
}
