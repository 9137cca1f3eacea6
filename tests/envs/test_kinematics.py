"""Closed-form kinematics against worked-out values, each other, and PyBullet reading our URDF."""

import numpy as np
import pybullet as p
import pytest

from envs import kinematics as k
from envs.robots import ASSETS, ROBOTS

MODEL = ROBOTS["widowx"]
DOWN = k.DOWN


def test_straight_joints_put_the_tool_where_the_datasheet_says() -> None:
    position, matrix = k.forward(MODEL.lengths, np.zeros(6))
    reach = 0.04975 + 0.175 + 0.075 + 0.065 + 0.043 + 0.023 + 0.027575
    assert position == pytest.approx([reach, 0, 0.072 + 0.03865 + 0.25])
    assert np.allclose(matrix, np.eye(3))


def test_waist_turns_left() -> None:
    position, _ = k.forward(MODEL.lengths, np.array([np.pi / 2, 0, 0, 0, 0, 0]))
    assert position[1] > 0.4
    assert abs(position[0]) < 1e-9


def test_inverse_undoes_forward() -> None:
    rng = np.random.default_rng(0)
    num_reached = 0
    for _ in range(500):
        position = rng.uniform(MODEL.workspace_low_m, MODEL.workspace_high_m)
        lean = k.axis_angle_matrix(np.array([*rng.uniform(-0.4, 0.4, 2), 0]))
        matrix = lean @ k.axis_angle_matrix(np.array([0, 0, rng.uniform(-1.5, 1.5)])) @ DOWN
        joints = k.inverse(MODEL, position, matrix)
        if joints is None:
            continue
        num_reached += 1
        again, turned = k.forward(MODEL.lengths, joints)
        assert np.allclose(again, position, atol=1e-9)
        assert np.allclose(turned, matrix, atol=1e-9)
    assert num_reached > 450


def test_urdf_agrees_with_the_closed_form() -> None:
    client = p.connect(p.DIRECT)
    body = p.loadURDF(str(ASSETS / MODEL.urdf), useFixedBase=True, physicsClientId=client)
    about = [
        p.getJointInfo(body, j, physicsClientId=client) for j in range(p.getNumJoints(body, physicsClientId=client))
    ]
    number = {joint[1].decode(): joint[0] for joint in about}
    tool = next(joint[0] for joint in about if joint[12].decode() == MODEL.tool_link)
    rng = np.random.default_rng(1)
    for _ in range(20):
        joints = rng.uniform(MODEL.joint_low_rad, MODEL.joint_high_rad)
        for name, angle in zip(MODEL.joint, joints, strict=True):
            p.resetJointState(body, number[name], angle, physicsClientId=client)
        state = p.getLinkState(body, tool, computeForwardKinematics=1, physicsClientId=client)
        position, matrix = k.forward(MODEL.lengths, joints)
        assert np.allclose(state[4], position, atol=1e-6)
        assert np.allclose(np.reshape(p.getMatrixFromQuaternion(state[5]), (3, 3)), matrix, atol=1e-6)
    for name, low, high in zip(MODEL.joint, MODEL.joint_low_rad, MODEL.joint_high_rad, strict=True):
        assert about[number[name]][8:10] == pytest.approx((low, high), abs=1e-4)
        assert about[number[name]][11] == pytest.approx(MODEL.joint_speed_rad_s, abs=1e-4)
    p.disconnect(client)


def test_rotations_go_round() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        vector = rng.normal(size=3)
        vector *= min(1.0, 3.0 / float(np.linalg.norm(vector)))  # below pi, where it is unique
        matrix = k.axis_angle_matrix(vector)
        assert np.allclose(k.matrix_axis_angle(matrix), vector, atol=1e-9)
        quat = k.matrix_quaternion(matrix)
        assert quat[0] >= 0
        assert np.allclose(k.quaternion_matrix(quat), matrix)
    quarter = k.axis_angle_matrix(np.array([0, 0, np.pi / 2]))
    assert np.allclose(quarter @ [1, 0, 0], [0, 1, 0])
    assert np.allclose(k.turn_between(DOWN, quarter @ DOWN), [0, 0, np.pi / 2])


def test_tilt_is_limited_and_heading_kept() -> None:
    leaning = k.axis_angle_matrix(np.array([0.9, 0, 0])) @ DOWN
    limited = k.limit_tilt(leaning, 0.6)
    assert np.allclose(limited, k.axis_angle_matrix(np.array([0.6, 0, 0])) @ DOWN)
    assert np.allclose(k.limit_tilt(DOWN, 0.6), DOWN)


@pytest.mark.parametrize("position", [(0.6, 0, 0.1), (0.5, 0.3, 0.1), (0.3, 0, 0.6)])
def test_out_of_reach_has_no_joints(position: tuple[float, float, float]) -> None:
    assert k.inverse(MODEL, np.array(position), DOWN) is None
