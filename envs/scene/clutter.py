"""Makes the clutter of randomized play: seven shapes of random colors and sizes.

None of them is a task's object or one of the distractors of evaluation (distractors.py): each combines its parts
differently from all of those.
"""

from envs.scene.distractors import hull, model, scaled
from envs.scene.objects import Color, ObjectModel, ball, box, rod


def _shapes(first: Color, second: Color) -> tuple[ObjectModel, ...]:
    """All shapes in two colors."""
    return (
        model(
            "arch",
            0.06,
            (0.070, 0.030, 0.054),
            *[box(0.014, 0.030, 0.040, (x, 0, 0.020), first, solid=True) for x in (-0.026, 0.026)],
            box(0.070, 0.030, 0.014, (0, 0, 0.047), second, solid=True),
        ),
        model(
            "pyramid",
            0.06,
            (0.060, 0.060, 0.048),
            box(0.060, 0.060, 0.016, (0, 0, 0.008), first, solid=True),
            box(0.040, 0.040, 0.016, (0, 0, 0.024), second, solid=True),
            box(0.020, 0.020, 0.016, (0, 0, 0.040), first, solid=True),
        ),
        model(
            "dumbbell",
            0.08,
            (0.108, 0.036, 0.036),
            *[ball(0.018, (x, 0, 0.018), second) for x in (-0.036, 0.036)],
            rod(0.008, 0.060, (0, 0, 0.018), first, lying=True),
            box(0.104, 0.030, 0.034, (0, 0, 0.017), None, solid=True),
        ),
        model(
            "mushroom",
            0.05,
            (0.052, 0.052, 0.056),
            rod(0.011, 0.034, (0, 0, 0.017), first),
            rod(0.026, 0.022, (0, 0, 0.045), second),
            hull(0.024, 0.056),
        ),
        model(
            "cross",
            0.05,
            (0.080, 0.080, 0.022),
            box(0.080, 0.022, 0.022, (0, 0, 0.011), first, solid=True),
            box(0.022, 0.080, 0.0218, (0, 0, 0.0109), second, solid=True),
        ),
        model(
            "angle",
            0.05,
            (0.066, 0.036, 0.056),
            box(0.066, 0.036, 0.016, (0, 0, 0.008), first, solid=True),
            box(0.016, 0.036, 0.040, (-0.025, 0, 0.036), second, solid=True),
        ),
        model(
            "pipe",
            0.07,
            (0.096, 0.031, 0.030),
            rod(0.015, 0.096, (0, 0, 0.015), first, lying=True),
            *[rod(0.0154, 0.014, (x, 0, 0.015), second, lying=True) for x in (-0.024, 0.024)],
            box(0.094, 0.026, 0.030, (0, 0, 0.015), None, solid=True),
        ),
    )


SHAPES = tuple(shape.name for shape in _shapes((0, 0, 0), (0, 0, 0)))
SIZE = (0.75, 1.15)
"""Smallest and largest scale of the shapes."""


def thing(name: str, first: Color, second: Color, size: float = 1.0) -> ObjectModel:
    """The shape called `name` in two colors, scaled."""
    [shape] = [shape for shape in _shapes(first, second) if shape.name == name]
    return scaled(shape, size)
