"""SIMPLER's four WidowX tasks, as literal entries: which ManiSkill scene, which objects, where they begin.

No simulator is imported here; envs/simpler.py runs them.
"""

from dataclasses import dataclass

NUM_STATES = 24
"""Initial states of each task that SIMPLER enumerates (of the eggplant's 64 its protocol uses the first 24)."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """One digital twin."""

    env_id: str
    """ManiSkill's name of it."""
    object: tuple[str, str]
    """What is moved and where to, as envs/tasks.py calls them."""
    low_m: tuple[float, float]
    """Corner of the part of the table that objects are drawn from, ManiSkill's world x and y: SIMPLER's own grid."""
    high_m: tuple[float, float]
    apart_m: float = 0.1
    """Least distance of the two; 0: the target stays where it is."""
    turned: bool = True
    """Whether the object is drawn with any yaw; else with one of SIMPLER's own orientations."""


TWINS: dict[str, Twin] = {
    "put_spoon_on_cloth": Twin(
        env_id="PutSpoonOnTableClothInScene-v1",
        object=("spoon", "cloth"),
        low_m=(-0.235, -0.075),
        high_m=(-0.085, 0.075),
        apart_m=0.12,
    ),
    "put_carrot_on_plate": Twin(
        env_id="PutCarrotOnPlateInScene-v1",
        object=("carrot", "plate"),
        low_m=(-0.235, -0.075),
        high_m=(-0.085, 0.075),
        apart_m=0.12,
    ),
    "stack_green_on_yellow": Twin(
        env_id="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        object=("green block", "yellow block"),
        low_m=(-0.26, -0.1),
        high_m=(-0.06, 0.1),
        apart_m=0.08,
    ),
    "put_eggplant_in_basket": Twin(
        env_id="PutEggplantInBasketScene-v1",
        object=("eggplant", "basket"),
        low_m=(-0.115, 0.191),
        high_m=(-0.095, 0.221),
        apart_m=0.0,
        turned=False,
    ),
}
