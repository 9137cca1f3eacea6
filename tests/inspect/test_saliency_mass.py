"""Shares of hand-made maps, worked out by hand."""

import numpy as np
import pytest

from tap_ray.inspect import saliency_mass as sh

# One frame of 2 x 4 px: arm, gripper, object of slot 0, object of slot 1, and nothing in the second row.
WHOSE = np.array([[[1, 2, 3, 4], [0, 0, 0, 0]]], np.uint8)
MAP = np.array([[[0.0, 5.0, 2.0, 1.0], [2.0, 0.0, 0.0, 0.0]]])


def test_shares_by_hand():
    found = sh.saliency_mass(MAP, WHOSE)
    assert found == {
        "gripper": (0.5, 1 / 8),
        "objects": (pytest.approx(0.3), 2 / 8),
        "gripper or objects": (pytest.approx(0.8), 3 / 8),
        "arm": (0.0, 1 / 8),
        "elsewhere": (pytest.approx(0.2), 4 / 8),
    }


def test_every_frame_counts_alike_and_blank_ones_not_at_all():
    other = np.zeros_like(MAP)
    other[0, 1, 3] = 1000.0
    nobody = np.zeros_like(WHOSE)
    found = sh.saliency_mass(np.concatenate([MAP, other, 0 * MAP]), np.concatenate([WHOSE, WHOSE, nobody]))
    assert found["gripper"] == (0.25, 1 / 8)
    assert found["elsewhere"] == (pytest.approx(0.6), 4 / 8)
    assert np.isnan(sh.saliency_mass(0 * MAP, WHOSE)["gripper"]).all()


def test_a_map_without_preference_has_ratio_one():
    found = sh.summary([sh.saliency_mass(np.ones_like(MAP), WHOSE)] * 3)
    for name in sh.REGIONS:
        assert [found[name][key] for key in ("ratio", "low", "high")] == pytest.approx([1, 1, 1])


def episode(mass: float, pixels: float) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(sh.REGIONS, (mass, pixels))


def test_the_ratio_is_that_of_the_means():
    found = sh.summary([episode(0.4, 0.1), episode(0.2, 0.2)])["gripper"]
    assert (found["mass"], found["pixels"], found["ratio"]) == pytest.approx((0.3, 0.15, 2.0))
    # Two episodes can only be drawn in three ways: twice the second (ratio 1), both (2), twice the first (4).
    assert (found["low"], found["high"]) == pytest.approx((1.0, 4.0))
    assert found["episodes"] == 2


def test_what_is_undefined_is_said_to_be():
    alone = sh.summary([episode(0.4, 0.1)])["gripper"]
    assert (alone["ratio"], alone["low"], alone["high"]) == (pytest.approx(4.0), None, None)
    unseen = sh.summary([episode(0.0, 0.0)] * 2)["objects"]
    assert (unseen["mass"], unseen["ratio"], unseen["low"]) == (0.0, None, None)
    blank = sh.summary([episode(np.nan, np.nan), episode(0.4, 0.1)])["gripper"]
    assert (blank["ratio"], blank["episodes"]) == (pytest.approx(4.0), 1)
    assert sh.summary([episode(np.nan, np.nan)])["gripper"]["mass"] is None


def test_differences_are_paired():
    first, second = [episode(0.1, 0.1), episode(0.5, 0.1)], [episode(0.2, 0.1), episode(0.6, 0.1)]
    found = sh.difference(first, second)["gripper"]
    assert (found["mass"], found["low"], found["high"]) == pytest.approx((0.1, 0.1, 0.1))


def test_the_mean_of_several_networks():
    assert sh.mean_mass([episode(0.1, 0.1), episode(0.3, 0.1)])["arm"] == pytest.approx((0.2, 0.1))


def test_at_best():
    exact = sh.upper_bound(WHOSE.repeat(2, axis=1), np.eye(4, dtype=np.float32))
    assert [exact[name][0] for name in sh.REGIONS] == pytest.approx([1] * 5)
    one_cell = sh.upper_bound(WHOSE.repeat(2, axis=1), np.ones((4, 1), np.float32))
    assert one_cell["gripper"] == pytest.approx((1 / 8, 1 / 8))


def test_a_line_of_the_table():
    _, line = sh.text({"bc50, image": sh.summary([episode(0.4, 0.1), episode(0.2, 0.2)])})
    assert "bc50, image" in line
    assert line.count("30.0/15.0 2.00 (1.00-4.00)") == 5
    assert sh.text({"x": sh.summary([episode(0.0, 0.0)])})[1].split() == ["x", "-", "-", "-", "-", "-"]
