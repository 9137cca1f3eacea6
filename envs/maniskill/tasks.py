"""Lists SIMPLER's four WidowX tasks: their ManiSkill scenes, objects and initial positions.

No simulator is imported here; envs/maniskill/env.py runs them.
"""

from dataclasses import dataclass

from envs.scene.objects import ObjectModel, Vector
from envs.scene.scenarios import CameraOffset

Place = tuple[float, float]
"""x and y, m."""
NUM_STATES = 24
"""Initial states of each task that SIMPLER enumerates (of the eggplant's 64 its protocol uses the first 24)."""


@dataclass(frozen=True, kw_only=True)
class ManiSkillTask:
    """One digital-twin task."""

    env_id: str
    """ManiSkill's name of it."""
    object: tuple[str, ...]
    """The moved object, then its target, with the names of envs/scene/tasks.py."""
    low_m: tuple[float, float]
    """Corner of the part of the table that objects are drawn from, ManiSkill's world x and y: SIMPLER's own grid."""
    high_m: tuple[float, float]
    min_separation_m: float = 0.1
    """Smallest distance between two objects, m."""
    num_placed: int = 2
    """Number of objects whose position is drawn; the others stay where SIMPLER puts them."""
    carry_z_m: float = 0.14
    """Height of the expert's end effector on its way to the target, base frame: above the rim of the sink, for one."""
    table_z_m: float = -0.0045
    """Height of the table in the base frame, where distractors stand and a cloth lies."""
    cloth_low_m: tuple[float, float] = (0.10, -0.36)
    """Corner of the cloth, base frame x and y."""
    cloth_high_m: tuple[float, float] = (0.56, 0.30)
    distractor_areas_m: tuple[tuple[Place, Place], ...] = (((0.15, -0.20), (0.47, 0.29)),)
    """Rectangles (low, high) in which distractors are placed, see envs/scene/scenarios.py."""
    distractor_scale: float = 0.7
    """Scale of distractors: the visible part of the table is small."""
    has_sink: bool = False
    """Whether the table is the floor of a sink, which the end effector begins above."""
    num_turned: int = 1
    """Number of objects that get a random yaw; the others have one of SIMPLER's own orientations."""


CAMERA_OFFSETS: tuple[CameraOffset, ...] = (
    CameraOffset(name="left", move_m=(0.06, 0.05, 0.02), turn_rad=(-0.08, -0.03)),
    CameraOffset(name="right", move_m=(0.0, -0.08, 0.0), turn_rad=(0.10, 0.0)),
    CameraOffset(name="up", move_m=(0.03, -0.03, 0.07), turn_rad=(0.04, -0.08)),
    CameraOffset(name="down", move_m=(0.04, -0.03, -0.06), turn_rad=(0.03, 0.06)),
)
"""Camera offsets of the scenario "viewpoint". The camera is close to the arm, which would fill the image after the
longer moves of envs/scene/scenarios.py."""
MANISKILL_TASKS: dict[str, ManiSkillTask] = {
    "put_spoon_on_cloth": ManiSkillTask(
        env_id="PutSpoonOnTableClothInScene-v1",
        object=("spoon", "cloth"),
        low_m=(-0.235, -0.075),
        high_m=(-0.085, 0.075),
        min_separation_m=0.12,
    ),
    "put_carrot_on_plate": ManiSkillTask(
        env_id="PutCarrotOnPlateInScene-v1",
        object=("carrot", "plate"),
        low_m=(-0.235, -0.075),
        high_m=(-0.085, 0.075),
        min_separation_m=0.12,
    ),
    "stack_green_on_yellow": ManiSkillTask(
        env_id="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        object=("green block", "yellow block"),
        low_m=(-0.26, -0.1),
        high_m=(-0.06, 0.1),
        min_separation_m=0.08,
    ),
    "put_eggplant_in_basket": ManiSkillTask(
        env_id="PutEggplantInBasketScene-v1",
        object=("eggplant", "basket"),
        low_m=(-0.115, 0.191),
        high_m=(-0.095, 0.221),
        min_separation_m=0.0,
        carry_z_m=0.24,
        table_z_m=0.068,
        cloth_low_m=(0.16, -0.25),
        cloth_high_m=(0.41, -0.03),
        distractor_areas_m=(((0.16, -0.25), (0.41, -0.03)),),
        distractor_scale=0.55,
        has_sink=True,
        num_placed=1,
        num_turned=0,
    ),
}


def _thing(name: str, half_size_m: Vector, grasp_z_m: float = 0.0, grasp_x_m: float = 0.0) -> ObjectModel:
    """What an expert needs to know about an object; the rest is in ManiSkill."""
    return ObjectModel(
        name=name, mass_kg=0.0, half_size_m=half_size_m, part=(), grasp_x_m=grasp_x_m, grasp_z_m=grasp_z_m
    )


THINGS: dict[str, ObjectModel] = {
    "spoon": _thing("spoon", (0.07, 0.0173, 0.013), 0.018),
    "cloth": _thing("cloth", (0.05, 0.05, 0.005)),
    "carrot": _thing("carrot", (0.0575, 0.016, 0.019), 0.02),
    "plate": _thing("plate", (0.055, 0.055, 0.003)),
    "green block": _thing("green block", (0.015, 0.015, 0.015), 0.02),
    "yellow block": _thing("yellow block", (0.015, 0.015, 0.015)),
    "eggplant": _thing("eggplant", (0.039, 0.0187, 0.019), 0.022),
    "basket": _thing("basket", (0.065, 0.04, 0.001)),
}
"""Half of ManiSkill's bounding boxes (info_bridge_custom_v0.json), and where to grasp objects: the fingers reach 15 mm
below the tool center point (measured)."""
MANISKILL_PLAY = ManiSkillTask(
    env_id="TapRayPlayInScene-v1",
    object=("spoon", "carrot", "green block", "eggplant"),
    low_m=(-0.26, -0.12),
    high_m=(-0.06, 0.12),
    min_separation_m=0.09,
    num_placed=4,
    num_turned=4,
)
"""Our own scene of play: envs/maniskill/play_scene.py."""
