"""Randomized play in the real simulator: bounded, seeded, paired with the standard scene, and never evaluation's."""

import json
from dataclasses import replace
from math import pi

import numpy as np
import pybullet as p
import pytest

import envs
from envs.bullet.camera import RenderConfig, render_image
from envs.bullet.env import TabletopEnv
from envs.kinematics.urdf import LEFT_RGB, RIGHT_RGB
from envs.maniskill.tasks import CAMERA_OFFSETS as MANISKILL_OFFSETS
from envs.robots import ROBOTS
from envs.scenario_sheet import SIDE_PX, play_sheet
from envs.scene.clutter import SHAPES, thing
from envs.scene.distractors import DISTRACTORS
from envs.scene.objects import OBJECTS, ObjectModel
from envs.scene.randomize import draw_randomized, drawn_json, tinted, turned_light, unlike
from envs.scene.scenarios import CAMERA_OFFSETS, SCENARIOS, Light, SceneConstraints, Viewpoint, kept_out_by, offset_view
from envs.scene.tasks import draw_scene
from envs.scene.textures import CLOTHS, Cloth, texture
from tap_ray.errors import ConfigError
from tap_ray.types import RANDOMIZE_MOST, EnvConfig, RandomizeConfig

LOOK = RenderConfig()
VIEW = Viewpoint(camera_pos_m=LOOK.camera_pos_m, target_m=LOOK.target_m, fov_deg=LOOK.fov_deg)
WIDE = RandomizeConfig(
    **{name: int(most) if name == "max_distractors" else most for name, most in RANDOMIZE_MOST.items()}
)
NOTHING = RandomizeConfig(**dict.fromkeys(RANDOMIZE_MOST, 0))
PLAY = EnvConfig(image_size=48, randomize=RandomizeConfig())


def constraints(seed: int) -> SceneConstraints:
    scene = draw_scene("play", np.random.default_rng(seed))
    return SceneConstraints(
        arm=ROBOTS["widowx"].arm, keep_out=kept_out_by("play", scene.object, scene.position_m), view=VIEW
    )


def distance(one, other) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


@pytest.mark.slow
@pytest.mark.parametrize("draws", [400, pytest.param(2000, marks=pytest.mark.long_proof)])
@pytest.mark.parametrize(
    ("config", "shifts", "camera"), [(RandomizeConfig(), CAMERA_OFFSETS, 1.0), (WIDE, MANISKILL_OFFSETS, 0.5)]
)
def test_within_bounds_and_never_what_evaluation_shows(config, shifts, camera, draws) -> None:
    """Those of the scenarios lie up to 0.15 m (twins 0.08 m) from the standard camera."""
    scenarios_cloths = SCENARIOS["background"].cloths
    assert len(scenarios_cloths) == len(shifts) == 4
    things = {name for family in SCENARIOS["distractors"].distractors for name in family}
    config = replace(config, joint_rad=0.0)  # slow to draw, and tests/envs/test_scenarios.py looks at it
    patterns, shapes = set(), set()
    for seed in range(draws):
        here = constraints(seed % 50)
        drawn = draw_randomized(config, seed, here, unseen=shifts, camera=camera)
        if drawn.cloth:
            patterns.add(drawn.cloth.pattern)
            ground, printed = drawn.cloth.ground_rgb, drawn.cloth.print_rgb
            assert config.cloth_period_m[0] <= drawn.cloth.period_m <= config.cloth_period_m[1]
            for cloth in scenarios_cloths:
                assert drawn.cloth.pattern != cloth.pattern
                assert max(distance(ground, cloth.ground_rgb), distance(printed, cloth.print_rgb)) >= 0.25
                assert max(distance(ground, cloth.print_rgb), distance(printed, cloth.ground_rgb)) >= 0.25
            for color in (ground, printed):
                assert min(distance(color, finger) for finger in (LEFT_RGB, RIGHT_RGB)) >= 0.3
                assert 1 - min(color) / max(color) <= config.cloth_saturation + 1e-9
        assert drawn.camera_offset
        assert np.linalg.norm(drawn.camera_offset.move_m) <= camera * config.camera_move_m + 1e-9
        assert min(distance(drawn.camera_offset.move_m, shift.move_m) for shift in shifts) >= 0.05
        view = offset_view(VIEW, drawn.camera_offset)
        [aim] = view.seen(np.array([VIEW.target_m]))  # where the old middle of the image is seen now
        reach = np.tan(np.radians(VIEW.fov_deg / 2))
        assert np.abs(np.arctan(aim * reach)).max() <= 1.1 * config.camera_turn_rad  # the two turns add up a little
        assert np.abs(view.seen(np.array([(c.x_m, c.y_m, 0.0) for c in here.keep_out]))).max() <= 0.9
        assert drawn.light
        assert 0 <= drawn.light.turn_rad <= config.light_turn_rad
        low, high = ((1 + s * config.light_gain) * (1 + s * config.light_tint) for s in (-1, 1))
        assert low <= min(drawn.light.tint) <= max(drawn.light.tint) <= high
        names = [one.object.name for one in drawn.distractor]
        shapes |= {*names}
        assert len(names) <= config.max_distractors
        assert not {*names} & (things | {*OBJECTS})
        for one in drawn.distractor:
            assert np.abs(view.seen(np.array([(*one.position_m, 0.03)]))).max() < 0.96
    assert patterns == {"plain", "diamonds", "bricks", "zigzag", "mosaic"}
    assert shapes == {*SHAPES}


def built_of(model: ObjectModel) -> list[tuple]:
    """What of its parts is seen, whatever its colors and size."""
    seen = [part for part in model.part if part.rgb is not None]
    size = max(side for part in seen for side in part.size_m)
    return [(part.shape, part.lying, *(round(side / size, 2) for side in part.size_m)) for part in seen]


@pytest.mark.parametrize("name", SHAPES)
def test_clutter_is_built_like_no_object_of_evaluation(name: str) -> None:
    model = thing(name, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8)
    assert name not in {*DISTRACTORS, *OBJECTS}
    assert all(built_of(model) != built_of(other) for other in (*DISTRACTORS.values(), *OBJECTS.values()))
    x, y, z = model.half_size_m
    for part in model.part:  # in its box, by which it is kept away from the others
        half = np.array(part.size_m) / 2 if part.shape == "box" else np.array(part.size_m[:1] * 3)
        if part.shape == "cylinder":
            half[0 if part.lying else 2] = part.size_m[2] / 2
        assert (np.abs(part.at_m) + half <= [x + 1e-9, y + 1e-9, 2 * z + 1e-9 + half[2]]).all()
        assert part.at_m[2] - half[2] >= -1e-3
        assert part.at_m[2] + half[2] <= 2 * z + 1e-3


def test_unlike_cloths_by_hand() -> None:
    checks = CLOTHS[0]  # (0.92, 0.90, 0.86) and (0.72, 0.16, 0.16)
    near = Cloth(name="", pattern="bricks", ground_rgb=(0.72, 0.16, 0.30), print_rgb=(0.92, 0.90, 0.70), period_m=0.1)
    assert not unlike(near, checks)  # both within 0.16, the other way round
    assert unlike(replace(near, ground_rgb=(0.72, 0.16, 0.42)), checks)  # 0.26 away
    assert not unlike(replace(near, ground_rgb=(0.0, 1.0, 1.0), pattern="checks"), checks)


def printed(pattern, side_px: int) -> np.ndarray:
    """(side_px, side_px), 0 ground .. 255 print: two periods of 10 cm, rows from +y to -y."""
    cloth = Cloth(name="", pattern=pattern, ground_rgb=(0, 0, 0), print_rgb=(1, 1, 1), period_m=0.1)
    return texture(cloth, side_m=0.2, side_px=side_px)[..., 0]


def test_patterns_by_hand() -> None:
    assert not printed("plain", 8).any()
    # On 8 x 8 places u = -7/8, -5/8 ... 7/8. floor(u + v) + floor(u - v) is odd where there is print.
    diamonds = printed("diamonds", 8)
    assert diamonds[3, 4:7].tolist() == [0, 0, 0]  # v = 1/8: 0 + 0
    assert diamonds[0, 5] == 0  # u = 3/8, v = 7/8: 1 - 1
    assert diamonds[1, [4, 7]].tolist() == [255, 255]  # v = 5/8: u = 1/8: 0 - 1; u = 7/8: 1 + 0
    assert printed("bricks", 40).mean() / 255 == pytest.approx(1 - 0.8 * 0.9, abs=1e-3)  # joints of a fifth, a tenth
    zigzag = printed("zigzag", 50)
    assert zigzag.mean() / 255 == pytest.approx(0.44, abs=0.05)
    assert (zigzag == zigzag[:, ::-1]).mean() > 0.9  # symmetric about x = 0
    mosaic = printed("mosaic", 8)
    assert set(np.unique(mosaic)) == {0, 85, 170, 255}
    assert (mosaic[0::2] == mosaic[1::2]).all()  # a stone is half a period


def test_light_by_hand() -> None:
    straight = turned_light((0.0, 0.0, 2.0), Light(heading_rad=pi / 2, turn_rad=pi / 6, tint=(1.0, 1.0, 1.0)))
    assert straight == pytest.approx((0.0, 1.0, 3**0.5))
    image = np.array([[[100, 100, 200], [0, 255, 255]]], np.uint8)
    assert tinted(image, (1.2, 0.5, 1.5)).tolist() == [[[120, 50, 255], [0, 128, 255]]]
    assert tinted(image, (1.0, 1.0, 1.0)).tolist() == image.tolist()


def episode(config: EnvConfig, *seeds: int) -> list[bytes]:
    """Bytes of the last of these episodes."""
    env, parts = envs.make(config), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        obs, info = env.reset(seed=seed)
        parts = [info["drawn"].encode()]
        for _ in range(4):
            parts += [obs["rgb"].tobytes(), obs["state"].tobytes(), info["object_pose"].tobytes()]
            obs, _, _, _, info = env.step(rng.uniform(-1, 1, 7) * [0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 1])
    env.close()
    return parts


def test_same_seed_same_bytes_whatever_came_before() -> None:
    assert episode(PLAY, 7) == episode(PLAY, 5, 7)
    assert episode(PLAY, 7)[0] != episode(PLAY, 8)[0]


def test_the_scene_is_the_standard_one() -> None:
    plain, other = envs.make(replace(PLAY, randomize=None)), envs.make(PLAY)
    for seed in range(6):
        obs, plain_info = plain.reset(seed=seed)
        changed, info = other.reset(seed=seed)
        assert "drawn" not in plain_info
        np.testing.assert_allclose(info["object_pose"], plain_info["object_pose"], atol=1e-4)  # after settling
        assert info["object_name"] == plain_info["object_name"]
        assert info["instruction"] == plain_info["instruction"]
        assert not np.array_equal(obs["rgb"], changed["rgb"])
    plain.close()
    other.close()


def test_bounds_of_zero_leave_the_standard_episode() -> None:
    plain, other = envs.make(replace(PLAY, randomize=None)), envs.make(replace(PLAY, randomize=NOTHING))
    obs, _ = plain.reset(seed=3)
    same, info = other.reset(seed=3)
    assert np.array_equal(obs["rgb"], same["rgb"])
    assert np.array_equal(obs["state"], same["state"])
    drawn = json.loads(info["drawn"])
    assert (drawn["cloth"], drawn["distractors"], drawn["joint_rad"], drawn["light_red"]) == ("", "", 0.0, 1.0)
    plain.close()
    other.close()


def test_parts_do_not_alter_each_other() -> None:
    full = draw_randomized(RandomizeConfig(), 11, constraints(0), unseen=CAMERA_OFFSETS)
    less = draw_randomized(
        RandomizeConfig(joint_rad=0, light_gain=0, max_distractors=0), 11, constraints(0), unseen=CAMERA_OFFSETS
    )
    assert (less.cloth, less.camera_offset, less.distractor) == (full.cloth, full.camera_offset, ())
    assert json.loads(drawn_json(full)).keys() == json.loads(drawn_json(less)).keys()


def test_the_robot_mask_is_where_the_robot_hides_the_scene() -> None:
    """Against the same image without robot and shadow: what changes is the mask, but for pixels of equal color."""
    env = TabletopEnv(EnvConfig(image_size=96, robot_mask=True, segmentation=True, randomize=RandomizeConfig()))
    for seed in range(5):
        obs, info = env.reset(seed=seed)
        mask, whose = info["robot_mask"] == 255, info["segmentation"]
        assert mask[np.isin(whose, (1, 2))].all()
        assert (whose[mask] < 3).all()
        for body in env.world.robot_and_shadow:
            p.removeBody(body, physicsClientId=env.world.client)
        bare = render_image(env.world.client, env.render_config, 96, mask=False).rgb
        hidden = (bare != obs["rgb"]).any(-1)
        assert 0.05 < mask.mean() < 0.5
        assert not (hidden & ~mask).any()
        assert (mask & ~hidden).sum() < 0.03 * mask.sum()
    env.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_robot_plays_it(robot: str) -> None:
    robots = envs.make_ee_control(replace(PLAY, robot=robot, max_steps=2, image_size=32), 2)
    _, info = robots.reset(seed=[1, 2])
    drawn = [json.loads(text) for text in info["drawn"]]
    assert 0 < drawn[0]["joint_rad"] <= 0.2
    assert drawn[0] != drawn[1]
    robots.close()


WRONG = [
    (lambda: RandomizeConfig(cloth_probability=1.5), r"cloth_probability must be in 0 \.\. 1; got 1\.5"),
    (lambda: RandomizeConfig(camera_move_m=-0.1), r"camera_move_m must be in 0 \.\. 0\.16; got -0\.1"),
    (lambda: RandomizeConfig(joint_rad=float("nan")), r"joint_rad must be in 0 \.\. 0\.3; got nan"),
    (lambda: RandomizeConfig(cloth_period_m=(0.2, 0.1)), r"within 0\.02 \.\. 0\.5 m; got 0\.2 and 0\.1"),
    (
        lambda: envs.make(replace(PLAY, task="put_carrot_on_plate")),
        r"`randomize` is only for play .* got task 'put_carrot",
    ),
    (lambda: envs.make(replace(PLAY, scenario="background")), "scenario 'background'. Omit `randomize`"),
]


@pytest.mark.parametrize(("make", "text"), WRONG)
def test_what_is_refused(make, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_the_sheet_of_play() -> None:
    page = np.asarray(play_sheet(columns=2, rows=1))
    assert page.shape == (SIDE_PX, 2 * SIDE_PX, 3)
    assert page.std() > 20
    assert not np.array_equal(page[:, :SIDE_PX], page[:, SIDE_PX:])
