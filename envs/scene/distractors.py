"""Defines the objects of the scenario "distractors", in five sets. Neither tasks nor play use them.

They are built like those of objects.py: from primitives, with a pose in the center of the bounding box. A round object
collides as an upright cylinder, so that it does not roll away before it is touched.
"""

from dataclasses import replace
from math import cos, sin

from envs.scene.objects import STEEL, WHITE, YELLOW, Color, ObjectModel, Part, Vector, ball, box, rod

BLACK, GRAY, RED, WOOD = (0.10, 0.10, 0.11), (0.45, 0.46, 0.48), (0.80, 0.12, 0.10), (0.66, 0.45, 0.25)
TEAL, LIME, BROWN, RUBBER = (0.05, 0.42, 0.42), (0.70, 0.86, 0.20), (0.42, 0.26, 0.13), (0.20, 0.21, 0.24)


def model(name: str, mass_kg: float, size_m: Vector, *part: Part) -> ObjectModel:
    """A distractor with full sides `size_m` around all its parts."""
    x, y, z = size_m
    return ObjectModel(name=name, mass_kg=mass_kg, half_size_m=(x / 2, y / 2, z / 2), part=part)


def hull(radius: float, height: float) -> Part:
    """The collision shape of a round object."""
    return rod(radius, height, (0, 0, height / 2), None, solid=True)


def scaled(model: ObjectModel, factor: float) -> ObjectModel:
    """The same object, scaled, with the same density."""
    if factor == 1.0:
        return model
    parts = tuple(
        replace(part, size_m=_times(part.size_m, factor), at_m=_times(part.at_m, factor)) for part in model.part
    )
    half = _times(model.half_size_m, factor)
    return replace(model, part=parts, half_size_m=half, mass_kg=model.mass_kg * factor**3)


def _times(vector: Vector, factor: float) -> Vector:
    x, y, z = vector
    return x * factor, y * factor, z * factor


def _banana() -> ObjectModel:
    """Balls along a quarter of a circle of 7 cm, thinner towards the ends."""
    bend = [-0.75, -0.55, -0.33, -0.11, 0.11, 0.33, 0.55, 0.75]
    thick = [0.008, 0.013, 0.016, 0.017, 0.017, 0.016, 0.013, 0.008]
    tint = [BROWN, *[YELLOW] * 6, BROWN]
    place = [(0.07 * sin(angle), 0.07 * (cos(angle) - 0.88), 0.017) for angle in bend]
    parts = [ball(radius, at, rgb) for radius, at, rgb in zip(thick, place, tint, strict=True)]
    return model("banana", 0.10, (0.115, 0.050, 0.034), *parts, box(0.10, 0.03, 0.03, (0, 0, 0.015), None, solid=True))


def _die() -> ObjectModel:
    """White, with three pips above and one and two on two sides."""
    side, pip = 0.036, 0.0035
    spots = [(-0.009, -0.009), (0.0, 0.0), (0.009, 0.009)]
    above = [rod(pip, 0.001, (x, y, side), BLACK) for x, y in spots]
    end = [rod(pip, 0.001, (side / 2, y, side / 2 + z), BLACK, lying=True) for y, z in (spots[0], spots[2])]
    flank = [box(2 * pip, 0.001, 2 * pip, (0, -side / 2, side / 2), BLACK)]
    other = [box(2 * pip, 0.001, 2 * pip, (x, side / 2, side / 2 + z), BLACK) for x, z in (spots[0], spots[2])]
    cube = box(side, side, side, (0, 0, side / 2), WHITE, solid=True)
    return model("die", 0.04, (side, side, side), cube, *above, *end, *flank, *other)


def _fruit(name: str, radius: float, rgb: Color, stalk: Color) -> ObjectModel:
    return model(
        name,
        0.08,
        (2 * radius, 2 * radius, 2 * radius),
        ball(radius, (0, 0, radius), rgb),
        rod(0.003, 0.012, (0, 0, 2 * radius + 0.003), stalk),
        hull(0.8 * radius, 2 * radius),
    )


DISTRACTORS: dict[str, ObjectModel] = {
    "mug": model(
        "mug",
        0.15,
        (0.080, 0.056, 0.065),
        rod(0.028, 0.065, (-0.012, 0, 0.0325), TEAL),
        rod(0.024, 0.001, (-0.012, 0, 0.065), BROWN),
        box(0.022, 0.009, 0.009, (0.026, 0, 0.052), TEAL),
        box(0.022, 0.009, 0.009, (0.026, 0, 0.016), TEAL),
        box(0.009, 0.009, 0.045, (0.036, 0, 0.034), TEAL),
        rod(0.028, 0.065, (-0.012, 0, 0.0325), None, solid=True),
    ),
    "can": model(
        "can",
        0.15,
        (0.050, 0.050, 0.070),
        rod(0.025, 0.060, (0, 0, 0.035), RED, solid=True),
        rod(0.0252, 0.016, (0, 0, 0.040), WHITE),
        rod(0.022, 0.070, (0, 0, 0.035), (0.75, 0.76, 0.78), solid=True),
        box(0.014, 0.006, 0.001, (0.004, 0, 0.0705), GRAY),
    ),
    "sponge": model(
        "sponge",
        0.02,
        (0.085, 0.055, 0.028),
        box(0.085, 0.055, 0.020, (0, 0, 0.010), (0.95, 0.85, 0.35), solid=True),
        box(0.085, 0.055, 0.008, (0, 0, 0.024), (0.08, 0.35, 0.16), solid=True),
    ),
    "salt shaker": model(
        "salt shaker",
        0.06,
        (0.036, 0.036, 0.065),
        rod(0.018, 0.047, (0, 0, 0.0235), (0.90, 0.91, 0.92), solid=True),
        rod(0.0185, 0.018, (0, 0, 0.056), GRAY, solid=True),
        *[rod(0.002, 0.001, (x, y, 0.0653), BLACK) for x, y in ((0.007, 0), (-0.007, 0), (0, 0.007), (0, -0.007))],
    ),
    "banana": _banana(),
    "apple": _fruit("apple", 0.031, RED, BROWN),
    "lime": _fruit("lime", 0.022, LIME, BROWN),
    "die": _die(),
    "rubber duck": model(
        "rubber duck",
        0.04,
        (0.076, 0.044, 0.062),
        ball(0.022, (-0.008, 0, 0.022), (0.99, 0.86, 0.05)),
        ball(0.014, (-0.024, 0, 0.026), (0.99, 0.86, 0.05)),
        ball(0.016, (0.010, 0, 0.046), (0.99, 0.86, 0.05)),
        box(0.014, 0.012, 0.005, (0.028, 0, 0.043), (0.95, 0.30, 0.05)),
        ball(0.0035, (0.022, 0.007, 0.051), BLACK),
        ball(0.0035, (0.022, -0.007, 0.051), BLACK),
        box(0.048, 0.036, 0.040, (-0.008, 0, 0.020), None, solid=True),
    ),
    "toy car": model(
        "toy car",
        0.06,
        (0.080, 0.040, 0.040),
        box(0.080, 0.034, 0.016, (0, 0, 0.016), RED, solid=True),
        box(0.040, 0.030, 0.016, (-0.006, 0, 0.032), RED, solid=True),
        box(0.0405, 0.024, 0.010, (-0.006, 0, 0.032), (0.65, 0.85, 0.95)),
        box(0.030, 0.0305, 0.010, (-0.006, 0, 0.032), (0.65, 0.85, 0.95)),
        *[box(0.016, 0.040, 0.016, (x, 0, 0.008), BLACK, solid=True) for x in (-0.024, 0.024)],
    ),
    "tennis ball": model(
        "tennis ball",
        0.05,
        (0.056, 0.056, 0.056),
        ball(0.028, (0, 0, 0.028), LIME),
        rod(0.0284, 0.003, (0, 0, 0.028), WHITE),
        hull(0.022, 0.056),
    ),
    "domino": model(
        "domino",
        0.02,
        (0.050, 0.025, 0.010),
        box(0.050, 0.025, 0.010, (0, 0, 0.005), BLACK, solid=True),
        box(0.002, 0.021, 0.001, (0, 0, 0.010), WHITE),
        *[rod(0.003, 0.001, (x, y, 0.010), WHITE) for x, y in ((-0.013, 0), (0.008, -0.006), (0.018, 0.006))],
    ),
    "tape roll": model(
        "tape roll",
        0.08,
        (0.084, 0.084, 0.024),
        rod(0.042, 0.024, (0, 0, 0.012), (0.78, 0.60, 0.32), solid=True),
        rod(0.029, 0.0244, (0, 0, 0.0122), WHITE),
        rod(0.025, 0.0248, (0, 0, 0.0124), (0.28, 0.24, 0.20)),
    ),
    "marker": model(
        "marker",
        0.02,
        (0.130, 0.018, 0.018),
        rod(0.009, 0.085, (-0.020, 0, 0.009), WHITE, lying=True),
        rod(0.009, 0.037, (0.041, 0, 0.009), (0.10, 0.12, 0.50), lying=True),
        rod(0.005, 0.006, (0.062, 0, 0.009), (0.10, 0.12, 0.50), lying=True),
        rod(0.0092, 0.006, (-0.060, 0, 0.009), (0.10, 0.12, 0.50), lying=True),
        box(0.125, 0.016, 0.018, (0, 0, 0.009), None, solid=True),
    ),
    "stapler": model(
        "stapler",
        0.10,
        (0.110, 0.028, 0.044),
        box(0.110, 0.028, 0.008, (0, 0, 0.004), BLACK, solid=True),
        box(0.022, 0.024, 0.028, (-0.044, 0, 0.022), GRAY, solid=True),
        box(0.094, 0.020, 0.006, (0.004, 0, 0.027), STEEL, solid=True),
        box(0.106, 0.024, 0.014, (-0.002, 0, 0.037), RUBBER, solid=True),
    ),
    "match box": model(
        "match box",
        0.02,
        (0.056, 0.036, 0.016),
        box(0.056, 0.0356, 0.016, (0, 0, 0.008), (0.85, 0.70, 0.20), solid=True),
        box(0.0562, 0.030, 0.012, (0, 0, 0.008), WOOD),
        box(0.050, 0.036, 0.010, (0, 0, 0.008), BROWN),
        box(0.034, 0.022, 0.0005, (0, 0, 0.016), RED),
    ),
    "screwdriver": model(
        "screwdriver",
        0.06,
        (0.150, 0.026, 0.026),
        rod(0.013, 0.060, (-0.042, 0, 0.013), RED, lying=True),
        rod(0.010, 0.012, (-0.006, 0, 0.013), BLACK, lying=True),
        rod(0.0035, 0.070, (0.035, 0, 0.013), STEEL, lying=True),
        box(0.008, 0.008, 0.002, (0.071, 0, 0.013), STEEL),
        box(0.066, 0.022, 0.026, (-0.042, 0, 0.013), None, solid=True),
        box(0.084, 0.008, 0.016, (0.033, 0, 0.008), None, solid=True),
    ),
    "battery": model(
        "battery",
        0.05,
        (0.060, 0.028, 0.028),
        rod(0.014, 0.037, (-0.009, 0, 0.014), BLACK, lying=True),
        rod(0.014, 0.019, (0.0185, 0, 0.014), (0.72, 0.45, 0.20), lying=True),
        rod(0.005, 0.003, (0.0285, 0, 0.014), STEEL, lying=True),
        box(0.056, 0.024, 0.028, (0, 0, 0.014), None, solid=True),
    ),
    "padlock": model(
        "padlock",
        0.08,
        (0.070, 0.040, 0.016),
        box(0.038, 0.040, 0.016, (-0.016, 0, 0.008), (0.76, 0.60, 0.22), solid=True),
        box(0.028, 0.006, 0.006, (0.017, 0.012, 0.008), STEEL, solid=True),
        box(0.028, 0.006, 0.006, (0.017, -0.012, 0.008), STEEL, solid=True),
        box(0.006, 0.030, 0.006, (0.032, 0, 0.008), STEEL, solid=True),
        rod(0.004, 0.001, (-0.018, 0, 0.016), BLACK),
    ),
    "spool": model(
        "spool",
        0.03,
        (0.044, 0.044, 0.044),
        rod(0.022, 0.006, (0, 0, 0.003), WOOD, solid=True),
        rod(0.017, 0.032, (0, 0, 0.022), (0.55, 0.10, 0.25), solid=True),
        rod(0.022, 0.006, (0, 0, 0.041), WOOD, solid=True),
        rod(0.005, 0.001, (0, 0, 0.044), BLACK),
    ),
}

SETS: tuple[tuple[str, ...], ...] = (
    ("mug", "can", "sponge", "salt shaker"),
    ("banana", "apple", "lime"),
    ("die", "rubber duck", "toy car", "tennis ball", "domino"),
    ("tape roll", "marker", "stapler", "match box"),
    ("screwdriver", "battery", "padlock", "spool"),
)
"""Kitchen, fruit, toys, desk, workshop."""
