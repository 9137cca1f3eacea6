from dataclasses import fields, replace

import numpy as np
import pytest

from tap_ray.errors import SpecError
from tap_ray.specs import (
    EE_DELTA_ACTION,
    EE_POSE_STATE,
    UNIFIED_ACTION,
    UNIFIED_STATE,
    ArmSlots,
    RobotSpec,
    Slot,
    missing_slots,
    require_compatible,
    slots,
    unified_indices,
)

ARM = RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=EE_POSE_STATE)

OTHER = {
    "robot": "panda",
    "action": EE_DELTA_ACTION[:6],
    "state": EE_POSE_STATE[::-1],
    "control_hz": 10.0,
    "action_frame": "tool",
    "action_mode": "absolute",
    "rotation": "axis_angle_right",
    "quaternion": "xyzw",
    "gripper": "0 open, 1 closed",
    "cameras": ("main", "wrist"),
}


@pytest.mark.parametrize("field", [field.name for field in fields(RobotSpec)])
def test_equal_specs_fit_and_each_field_alone_makes_a_mismatch(field):
    require_compatible(ARM, replace(ARM), have_name="data play/", want_name="policy p")
    with pytest.raises(SpecError) as caught:
        require_compatible(ARM, replace(ARM, **{field: OTHER[field]}), have_name="data play/", want_name="policy p")
    lines = str(caught.value).splitlines()
    assert lines[0] == "data play/ and policy p do not match:"
    assert len(lines) == 3
    assert lines[1].startswith(f"  {field}: data play/ has ")
    assert "Use data and a policy of the same robot" in lines[2]


def test_every_difference_is_listed():
    with pytest.raises(SpecError) as caught:
        require_compatible(ARM, RobotSpec(**OTHER), have_name="a", want_name="b")
    text = str(caught.value)
    assert all(f"\n  {name}: a has " in text for name in OTHER)
    assert "control_hz: a has 5.0, b has 10.0" in text
    assert "gripper (1) -1..1]" in text


def test_a_range_alone_is_a_mismatch():
    wide = replace(ARM, action=(*slots("m", -0.1, 0.1, "dx", "dy", "dz"), *EE_DELTA_ACTION[3:]))
    with pytest.raises(SpecError, match=r"dx \(m\) -0.05..0.05.* b has \[dx \(m\) -0.1..0.1"):
        require_compatible(ARM, wide, have_name="a", want_name="b")


def test_json_round_trip():
    assert RobotSpec.from_json(ARM.to_json()) == ARM


@pytest.mark.parametrize("change", [{"extra": 1}, {"robot": None}])
def test_a_spec_of_another_version_is_refused(change):
    data = ARM.to_json()
    for key, value in change.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    with pytest.raises(
        SpecError,
        match=r"A robot spec (lacks|has an unknown field) '.*A robot spec has the fields .*by another version",
    ):
        RobotSpec.from_json(data)


def test_the_action_of_the_paper():
    # arXiv 2607.02466: 7-D, delta xyz (m), delta axis-angle (rad), gripper.
    assert [slot.name for slot in ARM.action] == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    assert [slot.unit for slot in ARM.action] == ["m"] * 3 + ["rad"] * 3 + ["1"]
    np.testing.assert_array_equal(ARM.action_high_A, np.array([0.05] * 3 + [0.3] * 3 + [1], np.float32))
    np.testing.assert_array_equal(ARM.action_low_A, -ARM.action_high_A)
    assert ARM.action_low_A.dtype == np.float32


def test_slots_share_unit_and_range():
    assert slots("rad", -1, 2, "a", "b") == (
        Slot(name="a", unit="rad", low=-1, high=2),
        Slot(name="b", unit="rad", low=-1, high=2),
    )


def test_the_unified_layout_says_what_each_place_means():
    assert len(UNIFIED_ACTION) == len(set(UNIFIED_ACTION)) == 28
    assert len(UNIFIED_STATE) == len(set(UNIFIED_STATE)) == 30
    places = unified_indices(EE_DELTA_ACTION, UNIFIED_ACTION)
    assert [UNIFIED_ACTION[place] for place in places] == [f"arm0/{slot.name}" for slot in EE_DELTA_ACTION]


def test_joints_and_second_arms_have_places_of_their_own():
    joints = (*slots("rad", -1, 1, "dfirst", "dsecond"), *slots("1", -1, 1, "gripper"))
    assert [UNIFIED_ACTION[i] for i in unified_indices(joints, UNIFIED_ACTION)] == [
        "arm0/dq1",
        "arm0/dq2",
        "arm0/gripper",
    ]
    right = slots("m", -1, 1, "right_dx", "left_dx")
    assert [UNIFIED_ACTION[i] for i in unified_indices(right, UNIFIED_ACTION)] == ["arm1/dx", "arm0/dx"]


def test_a_slot_without_a_place_is_named():
    with pytest.raises(SpecError, match=r"Slot 'torque' \(N\) does not fit into the unified layout"):
        unified_indices(slots("N", -1, 1, "torque"), UNIFIED_ACTION)


def test_where_an_arms_end_effector_is():
    """In the state x y z and w x y z, in the action the seven numbers of the paper; no opening is measured."""
    [arm] = ARM.arms
    assert arm == ArmSlots(
        ee_pos=(0, 1, 2), ee_quat=(3, 4, 5, 6), opening=None, delta_pos=(0, 1, 2), delta_rot=(3, 4, 5), gripper=6
    )
    assert ARM.grippers == (6,)
    state = np.arange(7.0)
    assert state[..., arm.ee_pos].tolist() == [0, 1, 2]
    assert state[None, None][..., arm.ee_quat].tolist() == [[[3, 4, 5, 6]]]


def test_the_left_arm_is_the_first_one_wherever_its_slots_are():
    both = [replace(slot, name=side + slot.name) for side in ("right_", "left_") for slot in EE_DELTA_ACTION]
    state = [replace(slot, name=side + slot.name) for side in ("right_", "left_") for slot in EE_POSE_STATE[1:]]
    pair = replace(ARM, action=tuple(both), state=tuple(state))
    left, right = pair.arms
    assert (left.side, left.delta_pos, left.gripper) == ("left_", (7, 8, 9), 13)
    assert (right.side, right.delta_rot, right.gripper) == ("right_", (3, 4, 5), 6)
    assert (left.ee_pos, left.ee_quat) == ((), (8, 9, 10, 11)), "a position without its x is none"
    assert pair.grippers == (13, 6)
    assert missing_slots(pair, "ee_pos", "ee_quat", "gripper") == ["left_ee_x", "right_ee_x"]


def test_a_robot_without_an_arm():
    joints = replace(ARM, action=slots("rad", -1, 1, "da"), state=slots("rad", -1, 1, "a"))
    assert (joints.arms, joints.grippers) == ((), ())
    assert missing_slots(joints, "ee_pos", "gripper") == ["ee_x", "ee_y", "ee_z", "gripper"]
