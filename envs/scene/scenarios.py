"""Defines the robustness scenarios: seeded, bounded changes of how an episode starts and looks. No simulator is
imported here.

They are those of arXiv 2607.02466. A change has a node of the seed tree of its own and never alters the random draws of
the task's scene: with one seed, every scenario has the same objects, poses and instruction as "standard".
All lengths are in m, angles in rad, positions in the table frame of tap_ray/types.py.
"""

from dataclasses import dataclass, replace
from math import hypot, tan
from typing import Sequence

import numpy as np

from envs.kinematics.rotations import axis_angle_matrix
from envs.kinematics.solver import kinematics
from envs.robots import ArmModel
from envs.scene.distractors import DISTRACTORS, SETS, scaled
from envs.scene.objects import Color, ObjectModel, Vector
from envs.scene.tasks import PLAY, PUSH_M, TASKS
from envs.scene.textures import CLOTHS, Cloth
from tap_ray.errors import ConfigError, nearest
from tap_ray.plugins import Registry

STANDARD = "standard"
AREAS_M = (
    ((0.10, -0.26), (0.46, 0.26)),
    ((0.04, -0.30), (0.52, 0.40)),
    ((0.00, -0.30), (0.54, 0.65)),
)
"""Parts of the table where distractors are placed; see `SceneConstraints.distractor_areas_m`."""


@dataclass(frozen=True, kw_only=True)
class CameraOffset:
    """A change of the camera's position and direction, relative to the horizontal part of its viewing direction."""

    name: str
    move_m: Vector
    """Displacement of the camera: forward (the horizontal part of the viewing direction), left, up (table frame z)."""
    turn_rad: tuple[float, float]
    """Rotation of the view: to the left about the vertical, then upwards about the camera's own horizontal axis."""


CAMERA_OFFSETS: tuple[CameraOffset, ...] = (
    CameraOffset(name="left", move_m=(0.02, 0.15, 0.0), turn_rad=(-0.21, 0.0)),
    CameraOffset(name="right", move_m=(0.02, -0.15, 0.0), turn_rad=(0.20, 0.0)),
    CameraOffset(name="up", move_m=(0.04, 0.0, 0.14), turn_rad=(0.0, -0.17)),
    CameraOffset(name="down", move_m=(-0.04, 0.0, -0.12), turn_rad=(0.0, 0.15)),
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The changes of a scenario. An empty field changes nothing; the seed picks one of several variants.

    Fields that have variants have equally many: the seed picks the same of each.
    """

    name: str
    joint_rad: float = 0.0
    """Largest initial distance of each joint from home, uniformly distributed."""
    distractors: tuple[tuple[str, ...], ...] = ()
    """Sets of names of DISTRACTORS."""
    cloths: tuple[Cloth, ...] = ()
    camera_offsets: tuple[CameraOffset, ...] = ()

    def __post_init__(self) -> None:
        numbers = {len(each) for each in (self.distractors, self.cloths, self.camera_offsets) if each}
        if len(numbers) > 1:
            raise ConfigError(
                f"Scenario {self.name!r} has {len(self.distractors)} sets of distractors, {len(self.cloths)} cloths "
                f"and {len(self.camera_offsets)} camera offsets. Give the same number of each, or omit a kind "
                "altogether."
            )
        if unknown := sorted({name for each in self.distractors for name in each} - set(DISTRACTORS)):
            raise ConfigError(
                f"Scenario {self.name!r}: unknown distractor {unknown[0]!r}. {nearest(unknown[0], DISTRACTORS)}"
            )

    @property
    def changes(self) -> bool:
        """Whether anything is drawn."""
        return self != Scenario(name=self.name)

    @property
    def num_variants(self) -> int:
        """Number of sets, cloths or camera offsets; 1 if there is nothing to pick."""
        return max(1, len(self.distractors), len(self.cloths), len(self.camera_offsets))


BUILT_IN: dict[str, Scenario] = {
    STANDARD: Scenario(name=STANDARD),
    # Moves the tool by 5 cm on average and 10 cm at most on a WidowX (10 and 22 cm on the long arms) and turns it by
    # 14 degrees on average, 31 at most; 300 seeds a robot.
    "initial_state": Scenario(name="initial_state", joint_rad=0.2),
    "distractors": Scenario(name="distractors", distractors=SETS),
    "background": Scenario(name="background", cloths=CLOTHS),
    "viewpoint": Scenario(name="viewpoint", camera_offsets=CAMERA_OFFSETS),
}
SCENARIOS = Registry("scenario", BUILT_IN, expected=Scenario)
"""All scenarios, those of installed packages included."""


@dataclass(frozen=True, kw_only=True)
class Viewpoint:
    """A camera whose image is level."""

    camera_pos_m: Vector
    target_m: Vector
    """Point in the center of the image."""
    fov_deg: float
    """Field of view between two opposite borders; the smaller one for an image that is not square."""

    def seen(self, point_N3: np.ndarray) -> np.ndarray:
        """(N, 2) positions of points in the image: right and up, 1 is the border; NaN behind the camera."""
        forward = np.subtract(self.target_m, self.camera_pos_m)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        away_N3 = np.asarray(point_N3, float) - self.camera_pos_m
        depth_N = away_N3 @ forward
        on_N2 = np.stack([away_N3 @ right, away_N3 @ np.cross(right, forward)], axis=1)
        border_N = np.where(depth_N > 0, depth_N, np.nan) * tan(np.radians(self.fov_deg) / 2)
        return on_N2 / border_N[:, None]


@dataclass(frozen=True, kw_only=True)
class Circle:
    """A circular part of the table."""

    x_m: float
    y_m: float
    radius_m: float


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """A distractor on the table."""

    object: ObjectModel
    position_m: tuple[float, float]
    """x and y."""
    yaw_rad: float


@dataclass(frozen=True, kw_only=True)
class SceneConstraints:
    """What a change must respect."""

    arm: tuple[ArmModel, ...]
    """The arms, with the base and the home posture of this simulator."""
    keep_out: tuple[Circle, ...]
    """Parts of the table that the task needs; see `kept_out_by`."""
    view: Viewpoint
    """View of the standard camera."""
    distractor_areas_m: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = AREAS_M
    """Rectangles (low x, y; high x, y) for distractors: each is placed in the first one that has room."""
    robot_occludes: bool = True
    """Whether robots are between the camera and a part of the table."""
    scale: float = 1.0
    """Scale of the distractors: a smaller table has smaller ones."""
    clearance_m: float = 0.04
    """Smallest distance of distractors to the parts of the table that the task needs, m."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """A change of the light."""

    heading_rad: float
    """Heading in which the direction towards the light is tilted, and by how much."""
    turn_rad: float
    tint: Color
    """Factor of red, green and blue of the whole image."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What a scenario does to one episode."""

    joint_offset_rad: tuple[np.ndarray, ...]
    """For each arm (J,) offsets that are added to its initial joints; zeros: none."""
    distractor: tuple[Distractor, ...] = ()
    cloth: Cloth | None = None
    """Cloth on the table; a plain one is a table of that color."""
    camera_offset: CameraOffset | None = None
    light: Light | None = None


def known_scenario(name: str) -> Scenario:
    """The scenario called `name`.

    Raises:
        ConfigError: there is no such scenario; the message names the nearest.
    """
    return replace(SCENARIOS[name], name=name)


def draw_perturbation(
    scenario: Scenario, rng: np.random.Generator, constraints: SceneConstraints, *, variant: int | None = None
) -> Perturbation:
    """Draw what changes in one episode; "standard" draws nothing.

    Args:
        scenario: the scenario.
        rng: `tap_ray.rng.generator(seed, "scenario", scenario.name)`, `seed` being the episode's.
        constraints: robot, task and camera.
        variant: index of the set, cloth or camera offset, instead of drawing it.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant is not None and not 0 <= variant < scenario.num_variants:
        last = scenario.num_variants - 1
        raise ConfigError(f"Scenario {scenario.name!r} has the variants 0 to {last}; got {variant}.")
    if scenario.num_variants > 1:
        drawn = int(rng.integers(scenario.num_variants))
        variant = drawn if variant is None else variant
    number = variant or 0
    return Perturbation(
        joint_offset_rad=draw_offsets(scenario.joint_rad, rng, constraints.arm),
        distractor=_lay_out(scenario.distractors[number], rng, constraints) if scenario.distractors else (),
        cloth=scenario.cloths[number] if scenario.cloths else None,
        camera_offset=scenario.camera_offsets[number] if scenario.camera_offsets else None,
    )


# ---- initial state

INSIDE_M, MIN_START_Z_M, MIN_SEPARATION_M = 0.02, 0.10, 0.18
"""Smallest distances of initial tool positions from the edge of the workspace, from the table, and from each other,
m."""
MAX_START_TILT = 0.8
"""Largest initial tilt as a share of the allowed one."""


def draw_offsets(joint_rad: float, rng: np.random.Generator, arms: tuple[ArmModel, ...]) -> tuple[np.ndarray, ...]:
    """For each arm (J,) offsets from home, rad, each within `joint_rad`, so that tools start apart, high enough and
    within reach."""
    if joint_rad == 0:
        return tuple(np.zeros(len(arm.joint)) for arm in arms)
    while True:
        drawn = [_draw_offset(joint_rad, rng, arm) for arm in arms]
        places = [tool_m for _, tool_m in drawn]
        if all(np.linalg.norm(a - b) >= MIN_SEPARATION_M for i, a in enumerate(places) for b in places[:i]):
            return tuple(offset for offset, _ in drawn)


def _draw_offset(joint_rad: float, rng: np.random.Generator, arm: ArmModel) -> tuple[np.ndarray, np.ndarray]:
    """Offset (J,) of one arm, and the resulting tool position (3,), table frame."""
    solver, home, base_m = kinematics(arm), np.array(arm.home_rad), np.array(arm.base_m)
    low = np.array(arm.workspace_low_m) + INSIDE_M
    low[2] = max(low[2], MIN_START_Z_M)
    while True:
        start = home + rng.uniform(-joint_rad, joint_rad, len(home))
        position_m, matrix = solver.forward(start)
        place_m = position_m + base_m
        inside = (place_m >= low).all() and (place_m <= np.array(arm.workspace_high_m) - INSIDE_M).all()
        if not inside or matrix[2, 0] > -np.cos(MAX_START_TILT * arm.max_tilt_rad):
            continue
        # A redundant arm begins in the posture that it will hold; otherwise its first step would swing the elbow.
        held = solver.inverse(position_m, matrix, start)
        if held is not None and np.abs(held - home).max() <= joint_rad:
            return held - home, place_m


# ---- distractors

GAP_M, EDGE = 0.015, 0.96
"""Smallest distance between distractors, m, and largest distance of their corners from the image's center (1 is the
border)."""
BASE_M, STAND_M = 0.15, (0.09, 0.22)
"""Radius around a robot's base that stays empty; radius and height of the part of the robot that always hides what is
behind it."""
TRIES, ROUNDS, MIN_DISTRACTORS = 80, 60, 3
"""Number of positions tried in each area; of layouts tried if too few distractors fit (one in thousands); and of
distractors that must fit."""


def kept_out_by(
    task: str, objects: Sequence[ObjectModel], position_m: Sequence[tuple[float, float]]
) -> tuple[Circle, ...]:
    """Parts of the table that a task needs: around each object, and along the path of an object that is pushed to the
    left."""
    steps = (0.0,)
    if task != PLAY and TASKS[task].goal == "push_left":
        steps = (-0.08, 0.0, 0.5 * PUSH_M, PUSH_M, 1.4 * PUSH_M)  # the tool comes down behind it
    return tuple(
        Circle(x_m=x, y_m=y + step, radius_m=model.radius_m)
        for model, (x, y) in zip(objects, position_m, strict=True)
        for step in steps
    )


def _lay_out(names: Sequence[str], rng: np.random.Generator, constraints: SceneConstraints) -> tuple[Distractor, ...]:
    """Place a set of distractors on the table; if not all fit, at least MIN_DISTRACTORS of them."""
    for _ in range(ROUNDS):
        placed = place_distractors([DISTRACTORS[str(name)] for name in rng.permutation(names)], rng, constraints)
        if len(placed) >= min(MIN_DISTRACTORS, len(names)):
            return placed
    raise AssertionError(
        f"None of {ROUNDS} sampled layouts had room for {MIN_DISTRACTORS} distractors beside {constraints.keep_out}"
    )


def place_distractors(
    models: Sequence[ObjectModel], rng: np.random.Generator, constraints: SceneConstraints
) -> tuple[Distractor, ...]:
    """Place distractors (scaled for the table) where there is room, in view and without hiding an object; as many as
    fit."""
    placed: list[Distractor] = []
    for model in models:
        model = scaled(model, constraints.scale)
        low, high = np.repeat(constraints.distractor_areas_m, TRIES, axis=0).transpose(1, 0, 2)
        for (x, y), yaw in zip(rng.uniform(low, high), rng.uniform(-np.pi, np.pi, len(low)), strict=True):
            one = Distractor(object=model, position_m=(float(x), float(y)), yaw_rad=float(yaw))
            if _fits(one, placed, constraints):
                placed.append(one)
                break
    return tuple(placed)


def _fits(one: Distractor, placed: Sequence[Distractor], constraints: SceneConstraints) -> bool:
    (x, y), r, height = one.position_m, one.object.radius_m, 2 * one.object.half_size_m[2]
    bases = [
        Circle(x_m=arm.base_m[0], y_m=arm.base_m[1], radius_m=BASE_M - constraints.clearance_m)
        for arm in constraints.arm
    ]
    if any(
        hypot(x - c.x_m, y - c.y_m) < r + c.radius_m + constraints.clearance_m for c in (*constraints.keep_out, *bases)
    ):
        return False
    others = [(other.position_m, other.object.radius_m) for other in placed]
    if any(hypot(x - at[0], y - at[1]) < r + radius + GAP_M for at, radius in others):
        return False
    box = [(x + dx, y + dy, z) for dx in (-r, r) for dy in (-r, r) for z in (0.0, height)]
    if not (np.abs(constraints.view.seen(np.array(box))) <= EDGE).all():  # NaN is outside as well
        return False
    camera_pos_m, footprint = constraints.view.camera_pos_m, Circle(x_m=x, y_m=y, radius_m=r)
    if any(occludes(camera_pos_m, footprint, height, circle) for circle in constraints.keep_out):
        return False
    if not constraints.robot_occludes:
        return True
    stands = [Circle(x_m=base.x_m, y_m=base.y_m, radius_m=STAND_M[0]) for base in bases]
    return not any(occludes(camera_pos_m, stand, STAND_M[1], footprint) for stand in stands)


def occludes(camera_pos_m: Vector, front: Circle, height_m: float, behind: Circle) -> bool:
    """Whether a column `front` of a height may cover part of the circle `behind` of the table, seen from a camera.

    What it covers of the table lies between its own circle and the image of its top from the camera; the corridor
    between the two is tried with the larger radius. What stands on a circle that it does not cover is whole as well.
    """
    camera, foot = np.array(camera_pos_m[:2]), np.array([front.x_m, front.y_m])
    grow = camera_pos_m[2] / (camera_pos_m[2] - height_m)
    way = (foot - camera) * (grow - 1)
    middle = np.array([behind.x_m, behind.y_m]) - foot
    along = min(1.0, max(0.0, float(middle @ way) / float(way @ way)))
    return float(np.linalg.norm(middle - along * way)) < grow * front.radius_m + behind.radius_m


# ---- viewpoint


def camera_turn(forward: np.ndarray, offset: CameraOffset) -> np.ndarray:
    """(3, 3) R of the table frame that turns a camera looking along `forward` (3,): R_camera_next = R R_camera."""
    left = np.cross((0.0, 0.0, 1.0), forward)
    left /= np.linalg.norm(left)
    to_left, upwards = offset.turn_rad
    return axis_angle_matrix(np.array([0.0, 0.0, to_left])) @ axis_angle_matrix(-upwards * left)


def camera_move(forward: np.ndarray, offset: CameraOffset) -> np.ndarray:
    """(3,) m, table frame: how far an offset moves a camera looking along `forward` (3,)."""
    level = np.array([forward[0], forward[1], 0.0]) / hypot(forward[0], forward[1])
    return np.stack([level, np.cross((0.0, 0.0, 1.0), level), (0.0, 0.0, 1.0)], axis=1) @ offset.move_m


def offset_view(view: Viewpoint, offset: CameraOffset) -> Viewpoint:
    """The view after an offset; its target is as far away as before."""
    eye, forward = np.array(view.camera_pos_m), np.subtract(view.target_m, view.camera_pos_m)
    moved = eye + camera_move(forward, offset)
    x, y, z = (float(value) for value in moved)
    tx, ty, tz = (float(value) for value in moved + camera_turn(forward, offset) @ forward)
    return replace(view, camera_pos_m=(x, y, z), target_m=(tx, ty, tz))
