"""What scenarios are made of, against worked-out values: views, shifts, hiding, cloths, distractors."""

import numpy as np
import pytest

from envs.kinematics.urdf import LEFT_RGB, RIGHT_RGB
from envs.scene.distractors import DISTRACTORS, SETS
from envs.scene.objects import OBJECTS, Part
from envs.scene.scenarios import (
    CameraOffset,
    Circle,
    Viewpoint,
    camera_move,
    camera_turn,
    kept_out_by,
    occludes,
    offset_view,
)
from envs.scene.textures import CLOTHS, texture


def test_a_view_by_hand() -> None:
    view = Viewpoint(
        camera_pos_m=(0.0, 0.0, 1.0), target_m=(1.0, 0.0, 1.0), fov_deg=90.0
    )  # level, 45 degrees to each side
    seen = view.seen(np.array([(1, 0, 1), (2, -1, 1), (2, 2, 1), (2, 0, 0), (-1, 0, 1)]))
    np.testing.assert_allclose(seen[:4], [(0, 0), (0.5, 0), (-1, 0), (0, -0.5)], atol=1e-12)
    assert np.isnan(seen[4]).all()


def test_shifts_by_hand() -> None:
    forward = np.array([0.0, 1.0, 0.0])  # its left is -x
    shift = CameraOffset(name="", move_m=(0.1, 0.2, 0.3), turn_rad=(np.pi / 2, 0.0))
    np.testing.assert_allclose(camera_move(forward, shift), (-0.2, 0.1, 0.3), atol=1e-12)
    np.testing.assert_allclose(camera_turn(forward, shift) @ forward, (-1, 0, 0), atol=1e-12)
    upwards = CameraOffset(name="", move_m=(0.0, 0.0, 0.0), turn_rad=(0.0, np.pi / 4))
    np.testing.assert_allclose(camera_turn(forward, upwards) @ forward, (0, 0.5**0.5, 0.5**0.5), atol=1e-12)
    view = Viewpoint(camera_pos_m=(0.0, 0.0, 1.0), target_m=(0.0, 2.0, 1.0), fov_deg=40.0)
    after = offset_view(view, shift)
    assert after.camera_pos_m == pytest.approx((-0.2, 0.1, 1.3))
    assert after.target_m == pytest.approx((-2.2, 0.1, 1.3))


@pytest.mark.parametrize(
    ("at", "hidden"), [((0.1, 0.0), True), ((0.8, 0.0), False), ((0.1, 0.5), False), ((-0.3, 0.0), False)]
)
def test_what_a_distractor_covers_by_hand(at: tuple[float, float], hidden: bool) -> None:
    """A mug half as high as the eye, half a meter away, covers half a meter of table behind it."""
    mug = Circle(x_m=0.5, y_m=0.0, radius_m=0.05)
    assert occludes((1.0, 0.0, 0.4), mug, 0.2, Circle(x_m=at[0], y_m=at[1], radius_m=0.02)) == hidden


def test_a_pushed_object_needs_its_way() -> None:
    pumpkin, plate = OBJECTS["pumpkin"], OBJECTS["plate"]
    circles = kept_out_by("push_pumpkin_left", [pumpkin], [(0.3, -0.1)])
    assert [round(circle.y_m, 3) for circle in circles] == [-0.18, -0.1, -0.05, 0.0, 0.04]
    assert kept_out_by("play", [plate], [(0.3, 0.1)]) == (Circle(x_m=0.3, y_m=0.1, radius_m=plate.radius_m),)


@pytest.mark.parametrize("cloth", CLOTHS, ids=lambda cloth: cloth.name)
def test_cloths(cloth) -> None:
    image = texture(cloth, side_m=2.0)
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8
    seen = {tuple(int(value) for value in color) for color in np.unique(image.reshape(-1, 3), axis=0)}
    for color in (cloth.ground_rgb, cloth.print_rgb):
        assert tuple(round(255 * value) for value in color) in seen
    assert image.reshape(-1, 3).mean(0) / 255 == pytest.approx(cloth.mean_rgb, abs=0.03)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_the_gingham_by_hand() -> None:
    """10 cm of it on 4 px: half printed in the quarters where one stripe runs, all where two cross."""
    red, ground = np.array(CLOTHS[0].print_rgb), np.array(CLOTHS[0].ground_rgb)
    both = (red + ground) / 2
    image = texture(CLOTHS[0], side_m=0.2, side_px=4)[:2, 2:]  # +y, +x; y falls with the rows
    want = np.array([[both, ground], [red, both]])
    np.testing.assert_allclose(image / 255, want, atol=0.003)


def test_the_sets_are_unseen_and_whole() -> None:
    assert not set(DISTRACTORS) & set(OBJECTS)
    assert sorted(name for names in SETS for name in names) == sorted(DISTRACTORS)
    assert len(SETS) == 5
    assert all(3 <= len(names) <= 5 for names in SETS)
    assert all(DISTRACTORS[name].name == name for name in DISTRACTORS)


def _reach_m(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of a part."""
    radius, _, long = part.size_m
    match part.shape, part.lying:
        case "box", _:
            half = np.array(part.size_m) / 2
        case "sphere", _:
            half = np.full(3, radius)
        case _, True:
            half = np.array([long / 2, radius, radius])
        case _:
            half = np.array([radius, radius, long / 2])
    return np.array(part.at_m) - half, np.array(part.at_m) + half


@pytest.mark.parametrize("model", DISTRACTORS.values(), ids=lambda model: model.name)
def test_parts_lie_in_their_box(model) -> None:
    """Within 6 mm (stalks): what is told of a distractor's size is what keeps it away from the others."""
    low, high = (np.array(ends) for ends in zip(*[_reach_m(part) for part in model.part], strict=True))
    half = np.array(model.half_size_m)
    assert (low.min(0) >= [-half[0] - 0.003, -half[1] - 0.003, -0.001]).all()
    assert (high.max(0) <= [half[0] + 0.003, half[1] + 0.003, 2 * half[2] + 0.012]).all()
    assert any(part.solid for part in model.part)
    for part in model.part:
        for finger in (LEFT_RGB, RIGHT_RGB):
            assert part.rgb is None or np.linalg.norm(np.subtract(part.rgb, finger)) > 0.3
