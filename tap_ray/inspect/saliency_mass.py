"""Computes saliency mass: the share of a saliency map on gripper, objects and arm, relative to the pixels that they
cover.

A uniform map has a ratio of 1. Intervals are over episodes, because frames of one episode resemble each other.
"""

from typing import Mapping, Sequence

import numpy as np

from tap_ray.media.text_table import columns
from tap_ray.metrics import bootstrap
from tap_ray.rng import generator
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER

REGIONS = ("gripper", "objects", "gripper or objects", "arm", "elsewhere")
"""The third is the sum of the first two; all but it add up to 1."""
KNOWN_REGIONS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("segmentation", "robot_mask"): REGIONS,
    ("robot_mask",): ("arm", "elsewhere"),
    (): (),
}
"""Options of a scene -> the regions of its images that are known then. With the robot's mask alone, "arm" is the whole
robot."""
SaliencyMass = Mapping[str, tuple[float, float]]
"""Saliency mass of one episode: region -> (share of the map's mass, share of the pixels); NaN if no frame has a map."""


def region(segmentation: np.ndarray, name: str) -> np.ndarray:
    """Where a region is: bool, same shape as `segmentation` (values as in tap_ray/types.py)."""
    match name:
        case "gripper":
            return segmentation == GRIPPER
        case "objects":
            return segmentation >= FIRST_OBJECT
        case "gripper or objects":
            return segmentation >= GRIPPER
        case "arm":
            return segmentation == ARM
        case _:
            return segmentation == ELSEWHERE


def saliency_mass(map_TYX: np.ndarray, segmentation_TYX: np.ndarray) -> dict[str, tuple[float, float]]:
    """Means over the frames of an episode; frames whose map is zero everywhere count in neither share.

    Args:
        map_TYX: at least 0, any scale: every frame counts alike.
        segmentation_TYX: uint8, which body the pixel shows.
    """
    total_T = map_TYX.sum((1, 2))
    there_T = total_T > 0
    if not there_T.any():
        return dict.fromkeys(REGIONS, (float("nan"), float("nan")))
    share_TYX = map_TYX[there_T] / total_T[there_T, None, None]
    masks = {name: region(segmentation_TYX[there_T], name) for name in REGIONS}
    return {name: (float((share_TYX * on).sum((1, 2)).mean()), float(on.mean())) for name, on in masks.items()}


def known(shares: SaliencyMass, regions: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The shares of these regions, NaN for the others."""
    return {name: pair if name in regions else (float("nan"), float("nan")) for name, pair in shares.items()}


def upper_bound(segmentation_TYX: np.ndarray, upsample_YG: np.ndarray) -> dict[str, tuple[float, float]]:
    """The shares of maps that *are* each region, blurred by a policy's few cells: what such a map can reach.

    Args:
        segmentation_TYX: which body the pixel shows.
        upsample_YG: of the policy's maps, see `saliency.SaliencyMaps`.
    """
    shrink_GY = (upsample_YG / upsample_YG.sum(0)).T
    found = {}
    for name in REGIONS:
        cells = shrink_GY @ region(segmentation_TYX, name).astype(np.float32) @ shrink_GY.T
        found[name] = saliency_mass(upsample_YG @ cells @ upsample_YG.T, segmentation_TYX)[name]
    return found


def mean_mass(several: Sequence[SaliencyMass]) -> dict[str, tuple[float, float]]:
    """The mean of several networks' shares of one episode."""
    stacked = {name: np.mean([one[name] for one in several], axis=0) for name in REGIONS}
    return {name: (float(mass), float(pixels)) for name, (mass, pixels) in stacked.items()}


def summary(episodes: Sequence[SaliencyMass]) -> dict[str, dict[str, float | None]]:
    """Region -> its shares, their ratio and a 95 % bootstrap interval of it over episodes; None where undefined.

    The ratio is that of the mean shares. The mean of ratios would be dominated by an episode in which an object is
    hidden.
    """
    found = {}
    for name in REGIONS:
        values_E2 = np.array([one[name] for one in episodes], float).reshape(-1, 2)
        values_E2 = values_E2[np.isfinite(values_E2).all(1)]
        mass, pixels = values_E2.mean(0) if len(values_E2) else (np.nan, np.nan)
        seen = bool(pixels > 0)
        low, high = bootstrap(values_E2, _ratio, generator(0, "shares", name)) if seen else (np.nan, np.nan)
        numbers = {"mass": mass, "pixels": pixels, "ratio": mass / pixels if seen else np.nan, "low": low, "high": high}
        found[name] = {key: _plain(value) for key, value in numbers.items()} | {"episodes": len(values_E2)}
    return found


def difference(first: Sequence[SaliencyMass], second: Sequence[SaliencyMass]) -> dict[str, dict[str, float | None]]:
    """Region -> difference of the shares of mass, `second` minus `first` on the same episodes, with a 95 % bootstrap
    interval."""
    found = {}
    for name in REGIONS:
        more_E1 = np.array([[b[name][0] - a[name][0]] for a, b in zip(first, second, strict=True)]).reshape(-1, 1)
        more_E1 = more_E1[np.isfinite(more_E1[:, 0])]
        mean = more_E1.mean() if len(more_E1) else np.nan
        low, high = bootstrap(more_E1, lambda rows: rows[..., 0], generator(0, "difference", name))
        found[name] = {key: _plain(value) for key, value in (("mass", mean), ("low", low), ("high", high))}
    return found


def _ratio(rows: np.ndarray) -> np.ndarray:
    """The ratio of two shares; a bootstrap draw without a single pixel of the region is compatible with any ratio."""
    return np.where(rows[..., 1] > 0, rows[..., 0] / np.where(rows[..., 1] > 0, rows[..., 1], 1), np.inf)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def text(rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[str]:
    """A text table: a row for each policy or network, a column for each region."""
    table = [(name, *(_cell(regions[region_name]) for region_name in REGIONS)) for name, regions in rows.items()]
    return columns([("", *REGIONS), *table])


def _cell(of: Mapping[str, float | None]) -> str:
    mass, pixels, ratio, low, high = (of[key] for key in ("mass", "pixels", "ratio", "low", "high"))
    if mass is None or pixels is None or ratio is None:
        return "-"
    interval = "" if low is None or high is None else f" ({low:.2f}-{high:.2f})"
    return f"{100 * mass:.1f}/{100 * pixels:.1f} {ratio:.2f}{interval}"
