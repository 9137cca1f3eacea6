"""Randomizes play: what `EnvConfig.randomize` changes in an episode. No simulator is imported here.

Table, camera, light, distractors and initial joints each have a node of the seed tree of their own, so none of them
alters the random draws of the task's scene or of another. None of them uses what the evaluation uses:
    cloths       differ from each of CLOTHS in pattern and in their pair of colors (MIN_COLOR)
    camera       is at least MIN_CAMERA_MOVE_M from each camera position of the scenario "viewpoint"
    distractors  are other objects (envs/scene/clutter.py)
"""

import json
from colorsys import hsv_to_rgb
from dataclasses import replace
from math import atan2, hypot, pi
from typing import Sequence

import numpy as np

from envs.kinematics.rotations import axis_angle_matrix
from envs.kinematics.urdf import LEFT_RGB, RIGHT_RGB
from envs.scene.clutter import SHAPES, SIZE, thing
from envs.scene.objects import Color, ObjectModel, Vector
from envs.scene.scenarios import (
    CameraOffset,
    Light,
    Perturbation,
    SceneConstraints,
    Viewpoint,
    camera_move,
    draw_offsets,
    offset_view,
    place_distractors,
)
from envs.scene.textures import CLOTHS, Cloth
from tap_ray.errors import ConfigError
from tap_ray.rng import generator
from tap_ray.types import EnvConfig, RandomizeConfig

PATTERNS = ("plain", "diamonds", "bricks", "zigzag", "mosaic")
MIN_COLOR = 0.25
"""Smallest distance (Euclidean, RGB in [0, 1]) of a cloth's ground or print color from those of each cloth of the
evaluation."""
MIN_FINGER = 0.3
"""Smallest distance of any color from the colors of the two fingers."""
MIN_CAMERA_MOVE_M = 0.05
IN_VIEW = 0.9
"""Largest distance of the objects from the image's center after a move of the camera; 1 is the border."""
TRIES = 1000


def require_play(config: EnvConfig) -> None:
    """Raise an error if anything but standard play is to be randomized: demonstrations and evaluation never are.

    Raises:
        ConfigError: the config randomizes something else.
    """
    if config.randomize is not None and (config.task, config.scenario) != ("play", "standard"):
        raise ConfigError(
            f"`randomize` is only for play in the scenario 'standard'; got task {config.task!r}, scenario "
            f"{config.scenario!r}. Omit `randomize`."
        )


def draw_randomized(
    config: RandomizeConfig,
    seed: int,
    constraints: SceneConstraints,
    *,
    unseen: Sequence[CameraOffset],
    camera: float = 1.0,
) -> Perturbation:
    """Draw the randomization of one episode.

    Args:
        config: the ranges.
        seed: seed of the episode.
        constraints: robot, objects and standard camera.
        unseen: the evaluation's offsets of this camera, which are never drawn.
        camera: factor of `config.camera_move_m`.
    """
    rng = {part: generator(seed, "randomize", part) for part in ("cloth", "camera", "light", "things", "joints")}
    offset = _draw_camera_offset(config, camera * config.camera_move_m, rng["camera"], constraints, unseen)
    seen = replace(constraints, view=offset_view(constraints.view, offset)) if offset else constraints
    return Perturbation(
        joint_offset_rad=draw_offsets(config.joint_rad, rng["joints"], constraints.arm),
        distractor=place_distractors(_draw_things(config, rng["things"]), rng["things"], seen),
        cloth=_draw_cloth(config, rng["cloth"]),
        camera_offset=offset,
        light=_draw_light(config, rng["light"]),
    )


def drawn_json(perturbation: Perturbation) -> str:
    """`info["drawn"]`: a JSON object that has the same keys and kinds of values in every episode."""
    cloth, offset, light = perturbation.cloth, perturbation.camera_offset, perturbation.light
    forward, left, up = offset.move_m if offset else (0.0, 0.0, 0.0)
    to_left, upwards = offset.turn_rad if offset else (0.0, 0.0)
    values = {
        "cloth": cloth.name if cloth else "",
        "cloth_ground": _hex(cloth.ground_rgb) if cloth else "",
        "cloth_print": _hex(cloth.print_rgb) if cloth else "",
        "cloth_period_m": cloth.period_m if cloth else 0.0,
        "camera_forward_m": forward,
        "camera_left_m": left,
        "camera_up_m": up,
        "camera_turn_left_rad": to_left,
        "camera_turn_up_rad": upwards,
        "light_heading_rad": light.heading_rad if light else 0.0,
        "light_turn_rad": light.turn_rad if light else 0.0,
        **{f"light_{name}": light.tint[i] if light else 1.0 for i, name in enumerate(("red", "green", "blue"))},
        "distractors": ",".join(one.object.name for one in perturbation.distractor),
        "joint_rad": float(max(np.abs(offset).max() for offset in perturbation.joint_offset_rad)),
    }
    return json.dumps(values)


def turned_light(direction: Vector, light: Light) -> Vector:
    """The direction towards the light after a change; not normalized, like the given one."""
    axis = np.array([-np.sin(light.heading_rad), np.cos(light.heading_rad), 0.0])
    x, y, z = axis_angle_matrix(light.turn_rad * axis) @ direction
    return float(x), float(y), float(z)


def tinted(rgb: np.ndarray, tint: Color) -> np.ndarray:
    """(..., 3) uint8, contiguous: an image whose colors are multiplied by `tint` and truncated at white."""
    if tint == (1.0, 1.0, 1.0):
        return np.ascontiguousarray(rgb)
    shade = np.minimum(np.round(np.arange(256)[:, None] * tint), 255).astype(np.uint8)  # of each value, for each color
    return np.stack([shade[rgb[..., color], color] for color in range(3)], axis=-1)


def unlike(cloth: Cloth, other: Cloth) -> bool:
    """Whether two cloths have another pattern and another pair of colors, whichever is the ground."""
    pairs = ((other.ground_rgb, other.print_rgb), (other.print_rgb, other.ground_rgb))
    apart = [max(_apart(cloth.ground_rgb, ground), _apart(cloth.print_rgb, other_)) for ground, other_ in pairs]
    return cloth.pattern != other.pattern and min(apart) >= MIN_COLOR


def _apart(color: Color, other: Color) -> float:
    return float(np.linalg.norm(np.subtract(color, other)))


def _draw_color(config: RandomizeConfig, rng: np.random.Generator) -> Color:
    while True:
        red, green, blue = hsv_to_rgb(rng.random(), rng.uniform(0, config.cloth_saturation), rng.uniform(0.15, 1.0))
        if min(_apart((red, green, blue), finger) for finger in (LEFT_RGB, RIGHT_RGB)) >= MIN_FINGER:
            return red, green, blue


def _draw_cloth(config: RandomizeConfig, rng: np.random.Generator) -> Cloth | None:
    if rng.random() >= config.cloth_probability:
        return None
    while True:
        name = PATTERNS[rng.integers(len(PATTERNS))]
        ground, printed = _draw_color(config, rng), _draw_color(config, rng)
        period_m = float(rng.uniform(*config.cloth_period_m))
        cloth = Cloth(
            name=name,
            pattern=name,
            ground_rgb=ground,
            print_rgb=ground if name == "plain" else printed,
            period_m=period_m,
        )
        if all(unlike(cloth, other) for other in CLOTHS):
            return cloth


def _draw_camera_offset(
    config: RandomizeConfig,
    most_m: float,
    rng: np.random.Generator,
    constraints: SceneConstraints,
    unseen: Sequence[CameraOffset],
) -> CameraOffset | None:
    if most_m == 0 and config.camera_turn_rad == 0:
        return None
    places = np.array([(circle.x_m, circle.y_m, 0.0) for circle in constraints.keep_out]).reshape(-1, 3)
    for _ in range(TRIES):
        way = rng.normal(size=3)
        forward, left, up = (float(x) for x in rng.uniform(0, most_m) * way / np.linalg.norm(way))
        move_m = (forward, left, up)
        off_rad = rng.uniform(-config.camera_turn_rad, config.camera_turn_rad, 2)
        offset = _aimed(constraints.view, move_m, off_rad)
        if any(np.linalg.norm(np.subtract(move_m, other.move_m)) < MIN_CAMERA_MOVE_M for other in unseen):
            continue
        if (np.abs(offset_view(constraints.view, offset).seen(places)) <= IN_VIEW).all():
            return offset
    raise AssertionError(f"None of {TRIES} sampled camera poses kept {constraints.keep_out} in view")


def _aimed(view: Viewpoint, move_m: Vector, off_rad: np.ndarray) -> CameraOffset:
    """A move after which the camera looks at the same point as before, except for `off_rad` (2,) to the left and
    upwards."""
    forward = np.subtract(view.target_m, view.camera_pos_m)
    moved = forward - camera_move(forward, CameraOffset(name="", move_m=move_m, turn_rad=(0.0, 0.0)))
    (x, y, z), (x_now, y_now, z_now) = forward, moved
    to_left = (atan2(y_now, x_now) - atan2(y, x) + pi) % (2 * pi) - pi
    upwards = atan2(z_now, hypot(x_now, y_now)) - atan2(z, hypot(x, y))
    turn_rad = (float(to_left + off_rad[0]), float(upwards + off_rad[1]))
    return CameraOffset(name="random", move_m=move_m, turn_rad=turn_rad)


def _draw_light(config: RandomizeConfig, rng: np.random.Generator) -> Light:
    heading, turn = rng.uniform(-pi, pi), rng.uniform(0, config.light_turn_rad)
    gain = 1 + rng.uniform(-config.light_gain, config.light_gain)
    red, green, blue = (float(x) for x in gain * (1 + rng.uniform(-config.light_tint, config.light_tint, 3)))
    return Light(heading_rad=float(heading), turn_rad=float(turn), tint=(red, green, blue))


def _draw_things(config: RandomizeConfig, rng: np.random.Generator) -> list[ObjectModel]:
    names = rng.choice(SHAPES, int(rng.integers(config.max_distractors + 1)))
    return [
        thing(str(name), _draw_color(config, rng), _draw_color(config, rng), float(rng.uniform(*SIZE)))
        for name in names
    ]


def _hex(color: Color) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in color)
