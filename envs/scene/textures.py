"""Makes tablecloths as procedural textures, including the four of the scenario "background"."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from envs.scene.objects import Color

SIDE_PX = 512
"""Side of a texture, px: 4 mm per pixel on the 2 m table, finer than a policy's camera resolves."""


@dataclass(frozen=True, kw_only=True)
class Cloth:
    """A pattern that repeats over the whole table top, printed in the second color on the first."""

    name: str
    pattern: Literal["checks", "stripes", "dots", "swirls", "plain", "diamonds", "bricks", "zigzag", "mosaic"]
    """The first four are the scenario's, the others those of randomized play."""
    ground_rgb: Color
    """Colors in [0, 1]."""
    print_rgb: Color
    period_m: float
    """Period of the pattern (swirls: their typical width)."""

    @property
    def mean_rgb(self) -> Color:
        """Average color, from which the color of the gripper's shadow is made."""
        red, green, blue = texture(self, side_m=1.0, side_px=128).reshape(-1, 3).mean(0) / 255
        return float(red), float(green), float(blue)


CLOTHS: tuple[Cloth, ...] = (
    Cloth(name="checks", pattern="checks", ground_rgb=(0.92, 0.90, 0.86), print_rgb=(0.72, 0.16, 0.16), period_m=0.10),
    Cloth(
        name="stripes", pattern="stripes", ground_rgb=(0.86, 0.84, 0.76), print_rgb=(0.22, 0.34, 0.52), period_m=0.08
    ),
    Cloth(name="dots", pattern="dots", ground_rgb=(0.30, 0.46, 0.36), print_rgb=(0.93, 0.92, 0.80), period_m=0.07),
    Cloth(name="swirls", pattern="swirls", ground_rgb=(0.50, 0.36, 0.24), print_rgb=(0.82, 0.70, 0.50), period_m=0.09),
)


@lru_cache(maxsize=2 * len(CLOTHS))
def texture(cloth: Cloth, *, side_m: float, side_px: int = SIDE_PX) -> np.ndarray:
    """(side_px, side_px, 3) uint8, read-only: the cloth on a square of `side_m`; columns go along x, rows against y."""
    place_m = (np.arange(side_px) + 0.5) / side_px * side_m - side_m / 2
    part = _printed(cloth, *np.meshgrid(place_m, -place_m))[..., None]
    rgb = (1 - part) * np.array(cloth.ground_rgb) + part * np.array(cloth.print_rgb)
    image = np.round(255 * rgb).astype(np.uint8)
    image.setflags(write=False)
    return image


def _printed(cloth: Cloth, x_m: np.ndarray, y_m: np.ndarray) -> np.ndarray:
    """Share of the printed color at each point, 0 .. 1."""
    u, v = x_m / cloth.period_m, y_m / cloth.period_m
    match cloth.pattern:
        case "checks":  # gingham: half the color where one stripe runs, all of it where two cross
            return ((u % 1 < 0.5).astype(float) + (v % 1 < 0.5)) / 2
        case "stripes":
            return (((u + v) % 1 < 0.4) | (((u + v) % 1 > 0.55) & ((u + v) % 1 < 0.65))).astype(float)
        case "dots":  # every other row is shifted by half a period
            shifted = u + 0.5 * (np.floor(v) % 2)
            return (np.hypot(shifted % 1 - 0.5, v % 1 - 0.5) < 0.28).astype(float)
        case "plain":
            return np.zeros_like(u)
        case "diamonds":  # a checkerboard rotated by 45 degrees
            return (np.floor(u + v) + np.floor(u - v)) % 2
        case "bricks":  # joints between bricks half as high as long, every other row shifted
            return ((v % 0.5 < 0.1) | ((u + 0.5 * (np.floor(2 * v) % 2)) % 1 < 0.1)).astype(float)
        case "zigzag":
            return ((v + np.abs(u % 1 - 0.5)) % 0.5 < 0.22).astype(float)
        case "mosaic":  # four shades
            i, j = np.floor(2 * u), np.floor(2 * v)
            return (i * i + 3 * j + 2 * i * j) % 7 % 4 / 3
        case "swirls":  # contour lines of bent waves
            bent = np.sin(2.1 * u + 1.7 * np.sin(1.3 * v)) + np.sin(1.9 * v + 1.9 * np.sin(1.1 * u + 0.7))
            return (0.5 + 0.5 * np.sin(5.0 * bent) > 0.5).astype(float)
