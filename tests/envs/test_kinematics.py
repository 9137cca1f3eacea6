"""Kinematics of every arm against worked-out values, each other, and PyBullet reading the same URDF."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pybullet as p
import pytest

from envs.kinematics.rotations import (
    axis_angle_matrix,
    matrix_axis_angle,
    matrix_quaternion,
    quaternion_matrix,
    turn_between,
)
from envs.kinematics.solver import DOWN, kinematics, limit_tilt
from envs.kinematics.urdf import urdf_of
from envs.robots import ROBOTS, ArmModel

WIDOWX = kinematics(ROBOTS["widowx"].arm[0])
every_arm = pytest.mark.parametrize("model", [pytest.param(model.arm[0], id=name) for name, model in ROBOTS.items()])


def test_straight_joints_put_the_tool_where_the_datasheet_says() -> None:
    position, matrix = WIDOWX.forward(np.zeros(6))
    reach = 0.04975 + 0.175 + 0.075 + 0.065 + 0.043 + 0.023 + 0.027575
    assert position == pytest.approx([reach, 0, 0.072 + 0.03865 + 0.25])
    assert np.allclose(matrix, np.eye(3))


def test_waist_turns_left() -> None:
    position, _ = WIDOWX.forward(np.array([np.pi / 2, 0, 0, 0, 0, 0]))
    assert position[1] > 0.4
    assert abs(position[0]) < 1e-9


def poses(model: ArmModel, rng: np.random.Generator, num: int):
    """Poses of an end effector that points down, more or less, over the workspace; base frame."""
    for _ in range(num):
        position = rng.uniform(model.workspace_low_m, model.workspace_high_m) - model.base_m
        lean = axis_angle_matrix(np.array([*rng.uniform(-0.4, 0.4, 2), 0]))
        yield position, lean @ axis_angle_matrix(np.array([0, 0, rng.uniform(-1.2, 1.2)])) @ DOWN


@every_arm
def test_inverse_undoes_forward(model: ArmModel) -> None:
    arm, num_reached = kinematics(model), 0
    for position, matrix in poses(model, np.random.default_rng(0), 200):
        joints = arm.inverse(position, matrix, None)
        if joints is None:
            continue
        num_reached += 1
        again, turned = arm.forward(joints)
        assert np.allclose(again, position, atol=2e-5)
        assert np.allclose(turned, matrix, atol=2e-4)
        assert (joints >= model.joint_low_rad).all()
        assert (joints <= model.joint_high_rad).all()
    assert num_reached > 160, "the arm covers its workspace, but for corners"


@every_arm
def test_the_joints_do_not_depend_on_the_way(model: ArmModel) -> None:
    arm, rng = kinematics(model), np.random.default_rng(1)
    for position, matrix in poses(model, rng, 40):
        direct = arm.inverse(position, matrix, None)
        if direct is None:
            continue
        near = arm.inverse(position, matrix, direct + rng.normal(0, 0.1, len(direct)))
        assert near is not None
        assert np.abs(near - direct).max() < 0.01


@every_arm
def test_the_home_posture_looks_down_on_the_table(model: ArmModel) -> None:
    position, matrix = kinematics(model).forward(np.array(model.home_rad))
    assert np.abs(turn_between(DOWN, matrix)).max() < 0.12
    assert (position + model.base_m > model.workspace_low_m).all()
    assert (position + model.base_m < model.workspace_high_m).all()


@every_arm
def test_urdf_agrees(model: ArmModel) -> None:
    client, arm = p.connect(p.DIRECT), kinematics(model)
    body = p.loadURDF(str(urdf_of(model)), useFixedBase=True, physicsClientId=client)
    about = [
        p.getJointInfo(body, j, physicsClientId=client) for j in range(p.getNumJoints(body, physicsClientId=client))
    ]
    number = {joint[1].decode(): joint[0] for joint in about}
    tool = next(joint[0] for joint in about if joint[12].decode() == model.tool_link)
    rng = np.random.default_rng(1)
    for _ in range(20):
        joints = rng.uniform(model.joint_low_rad, model.joint_high_rad)
        for name, angle in zip(model.joint, joints, strict=True):
            p.resetJointState(body, number[name], angle, physicsClientId=client)
        state = p.getLinkState(body, tool, computeForwardKinematics=1, physicsClientId=client)
        position, matrix = arm.forward(joints)
        assert np.allclose(state[4], position, atol=1e-5)
        assert np.allclose(np.reshape(p.getMatrixFromQuaternion(state[5]), (3, 3)), matrix, atol=1e-5)
    if model.data_arm is None:
        for name, low, high in zip(model.joint, model.joint_low_rad, model.joint_high_rad, strict=True):
            assert about[number[name]][8:10] == pytest.approx((low, high), abs=1e-4)
            assert about[number[name]][11] == pytest.approx(model.joint_speed_rad_s, abs=1e-4)
    p.disconnect(client)


def test_rotations_go_round() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        vector = rng.normal(size=3)
        vector *= min(1.0, 3.0 / float(np.linalg.norm(vector)))  # below pi, where it is unique
        matrix = axis_angle_matrix(vector)
        assert np.allclose(matrix_axis_angle(matrix), vector, atol=1e-9)
        quat = matrix_quaternion(matrix)
        assert quat[0] >= 0
        assert np.allclose(quaternion_matrix(quat), matrix)
    quarter = axis_angle_matrix(np.array([0, 0, np.pi / 2]))
    assert np.allclose(quarter @ [1, 0, 0], [0, 1, 0])
    assert np.allclose(turn_between(DOWN, quarter @ DOWN), [0, 0, np.pi / 2])


def test_tilt_is_limited_and_heading_kept() -> None:
    leaning = axis_angle_matrix(np.array([0.9, 0, 0])) @ DOWN
    limited = limit_tilt(leaning, 0.6)
    assert np.allclose(limited, axis_angle_matrix(np.array([0.6, 0, 0])) @ DOWN)
    assert np.allclose(limit_tilt(DOWN, 0.6), DOWN)


@every_arm
@pytest.mark.parametrize("position", [(1.6, 0, 0.1), (0.5, 1.3, 0.1), (0.3, 0, 1.9)])
def test_out_of_reach_has_no_joints(model: ArmModel, position: tuple[float, float, float]) -> None:
    assert kinematics(model).inverse(np.array(position), DOWN, None) is None


def test_borrowed_arms_are_made_whole_by_many_at_once(tmp_path: Path) -> None:
    code = (
        "from envs.robots import ROBOTS; from envs.kinematics.urdf import urdf_of;"
        "print(urdf_of(ROBOTS['xarm6'].arm[0]))"
    )
    env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) for _ in range(4)]
    printed = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(printed) == 1
    [folder] = (tmp_path / "tap_ray" / "robots").iterdir()
    assert {file.suffix for file in folder.iterdir()} == {".urdf", ".obj"}


def test_light_shapes_stay_light() -> None:
    for model in (robot.arm[0] for robot in ROBOTS.values()):
        for mesh in urdf_of(model).parent.glob("*.obj") if model.data_arm else ():
            assert mesh.read_text().count("\nf ") <= 92
