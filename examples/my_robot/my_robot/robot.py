"""Defines the constants of the robot "stubby". Every field is explained in envs/robots.py."""

from pathlib import Path

from envs.robots import ArmModel, RobotModel

ARM = ArmModel(
    name="stubby",
    urdf=str(Path(__file__).with_name("stubby.urdf")),
    joint=("waist", "shoulder", "elbow", "roll", "pitch", "turn"),
    joint_low_rad=(-3.0, -1.9, -2.2, -3.0, -1.8, -3.0),
    joint_high_rad=(3.0, 2.0, 1.7, 3.0, 2.2, 3.0),
    joint_speed_rad_s=3.0,
    joint_effort_nm=(12, 25, 18, 4, 6, 2),
    finger_open_m=0.04,
    finger_speed_m_s=0.2,
    finger_force_n=6.0,
    tool_link="ee_link",
    home_rad=(0.0, 0.1444, 0.2387, 0.0, 1.1877, 0.0),  # the tool at x 0.28, z 0.15 m, straight down
)

STUBBY = RobotModel(name="stubby", arm=(ARM,))
