"""Defines the objects on the table, built from a few boxes, cylinders and spheres: appearance, mass and collision
shape.

Parts are placed from the center of the object's underside, x along its long side, z up. An object's *pose* is that of
the center of its bounding box, which is also its center of mass.
"""

from dataclasses import dataclass
from typing import Literal

Color = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One primitive of an object."""

    shape: Literal["box", "cylinder", "sphere"]
    size_m: Vector
    """box: full x, y, z; cylinder: radius, radius, length; sphere: radius three times."""
    at_m: Vector = (0.0, 0.0, 0.0)
    """Center, from the center of the object's underside."""
    lying: bool = False
    """A cylinder along x instead of z."""
    rgb: Color | None = None
    """Color in [0, 1]; None: collides but is not seen."""
    solid: bool = False
    """Whether it collides."""


@dataclass(frozen=True, kw_only=True)
class ObjectModel:
    """One kind of object."""

    name: str
    mass_kg: float
    half_size_m: Vector
    """Half the bounding box."""
    part: tuple[Part, ...]
    grasp_x_m: float = 0.0
    """Where to grasp it, along its x axis."""
    grasp_z_m: float = 0.0
    """Height of the tool above its underside when grasping; 0 for objects that are not grasped."""
    friction: float = 1.0

    @property
    def radius_m(self) -> float:
        """Radius of the circle around its footprint, m."""
        x, y, _ = self.half_size_m
        return float((x * x + y * y) ** 0.5)


def box(x: float, y: float, z: float, at: Vector, rgb: Color | None, *, solid: bool = False) -> Part:
    """A box with full sides x, y, z around `at`, m."""
    return Part(shape="box", size_m=(x, y, z), at_m=at, rgb=rgb, solid=solid)


def rod(
    radius: float, length: float, at: Vector, rgb: Color | None, *, lying: bool = False, solid: bool = False
) -> Part:
    """A cylinder around `at`, m, upright or lying along x."""
    return Part(shape="cylinder", size_m=(radius, radius, length), at_m=at, lying=lying, rgb=rgb, solid=solid)


def ball(radius: float, at: Vector, rgb: Color) -> Part:
    """A sphere around `at`, m, only seen."""
    return Part(shape="sphere", size_m=(radius, radius, radius), at_m=at, rgb=rgb)


def cube(name: str, rgb: Color) -> ObjectModel:
    """A 4 cm block."""
    side = 0.04
    return ObjectModel(
        name=name,
        mass_kg=0.04,
        half_size_m=(side / 2, side / 2, side / 2),
        part=(box(side, side, side, (0, 0, side / 2), rgb, solid=True),),
        grasp_z_m=0.022,
    )


STEEL, ORANGE, LEAF, PURPLE = (0.62, 0.68, 0.78), (0.96, 0.48, 0.06), (0.16, 0.55, 0.14), (0.36, 0.11, 0.44)
BLUE, WHITE, CREAM, YELLOW = (0.17, 0.30, 0.72), (0.95, 0.95, 0.97), (0.80, 0.82, 0.88), (0.96, 0.80, 0.10)
PUMPKIN, STEM, WICKER = (0.90, 0.40, 0.05), (0.35, 0.40, 0.12), (0.86, 0.66, 0.12)

WALL_M, BASKET_M, BASKET_Z_M = 0.008, 0.15, 0.05
"""Thickness of the basket's walls, its outer side and its height."""
_EDGE, _WALL_Z_M, _MIDDLE_M = (BASKET_M - WALL_M) / 2, BASKET_Z_M - WALL_M, (BASKET_Z_M + WALL_M) / 2

OBJECTS: dict[str, ObjectModel] = {
    "spoon": ObjectModel(
        name="spoon",
        mass_kg=0.03,
        half_size_m=(0.07, 0.02, 0.008),
        part=(
            box(0.100, 0.014, 0.014, (-0.02, 0, 0.007), STEEL, solid=True),
            rod(0.021, 0.012, (0.049, 0, 0.006), STEEL),
            rod(0.014, 0.013, (0.049, 0, 0.0065), (0.42, 0.47, 0.56)),
            box(0.036, 0.034, 0.010, (0.049, 0, 0.007), None, solid=True),
        ),
        grasp_x_m=-0.01,
        grasp_z_m=0.012,
    ),
    "carrot": ObjectModel(
        name="carrot",
        mass_kg=0.04,
        half_size_m=(0.065, 0.016, 0.016),
        part=(
            rod(0.016, 0.045, (0.022, 0, 0.016), ORANGE, lying=True),
            rod(0.013, 0.035, (-0.017, 0, 0.014), ORANGE, lying=True),
            rod(0.009, 0.022, (-0.045, 0, 0.012), ORANGE, lying=True),
            box(0.025, 0.022, 0.012, (0.055, 0, 0.018), LEAF),
            box(0.110, 0.026, 0.026, (-0.005, 0, 0.013), None, solid=True),
        ),
        grasp_z_m=0.016,
    ),
    "green block": cube("green block", (0.10, 0.66, 0.22)),
    "yellow block": cube("yellow block", YELLOW),
    "eggplant": ObjectModel(
        name="eggplant",
        mass_kg=0.06,
        half_size_m=(0.06, 0.022, 0.022),
        part=(
            ball(0.022, (-0.028, 0, 0.022), PURPLE),
            rod(0.021, 0.035, (-0.010, 0, 0.021), PURPLE, lying=True),
            rod(0.017, 0.035, (0.020, 0, 0.020), PURPLE, lying=True),
            rod(0.014, 0.012, (0.041, 0, 0.020), LEAF, lying=True),
            rod(0.005, 0.016, (0.053, 0, 0.020), LEAF, lying=True),
            box(0.092, 0.036, 0.036, (-0.003, 0, 0.018), None, solid=True),
        ),
        grasp_z_m=0.020,
    ),
    "pumpkin": ObjectModel(
        name="pumpkin",
        mass_kg=0.08,
        half_size_m=(0.033, 0.033, 0.025),
        part=(
            ball(0.022, (0.013, 0.000, 0.023), PUMPKIN),
            ball(0.022, (-0.0065, 0.0113, 0.023), PUMPKIN),
            ball(0.022, (-0.0065, -0.0113, 0.023), PUMPKIN),
            rod(0.030, 0.022, (0, 0, 0.022), PUMPKIN),
            rod(0.005, 0.018, (0, 0, 0.051), STEM),
            rod(0.030, 0.044, (0, 0, 0.022), None, solid=True),
        ),
        grasp_z_m=0.025,
        friction=0.6,
    ),
    "cloth": ObjectModel(
        name="cloth",
        mass_kg=0.20,
        half_size_m=(0.075, 0.06, 0.002),
        part=(
            box(0.15, 0.12, 0.004, (0, 0, 0.002), BLUE, solid=True),
            box(0.012, 0.12, 0.0046, (0.055, 0, 0.0023), WHITE),
            box(0.012, 0.12, 0.0046, (-0.055, 0, 0.0023), WHITE),
        ),
    ),
    "plate": ObjectModel(
        name="plate",
        mass_kg=0.25,
        half_size_m=(0.07, 0.07, 0.005),
        part=(
            rod(0.070, 0.010, (0, 0, 0.005), WHITE, solid=True),
            rod(0.046, 0.0104, (0, 0, 0.0052), CREAM),
        ),
    ),
    "basket": ObjectModel(
        name="basket",
        mass_kg=0.40,
        half_size_m=(BASKET_M / 2, BASKET_M / 2, BASKET_Z_M / 2),
        part=(
            box(BASKET_M, BASKET_M, WALL_M, (0, 0, WALL_M / 2), WICKER, solid=True),
            box(WALL_M, BASKET_M, _WALL_Z_M, (_EDGE, 0, _MIDDLE_M), YELLOW, solid=True),
            box(WALL_M, BASKET_M, _WALL_Z_M, (-_EDGE, 0, _MIDDLE_M), YELLOW, solid=True),
            box(BASKET_M, WALL_M, _WALL_Z_M, (0, _EDGE, _MIDDLE_M), YELLOW, solid=True),
            box(BASKET_M, WALL_M, _WALL_Z_M, (0, -_EDGE, _MIDDLE_M), YELLOW, solid=True),
        ),
    ),
}
