"""Computes statistics of one episode and merges them, with lerobot 0.4.4's conventions (its datasets/compute_stats.py).

A feature's statistics are a dict of float64 arrays: min, max, mean, std (population), q01 ... q99, each of shape (D,)
for a vector and (3, 1, 1) in [0, 1] for an image, and count, (1,) int64: frames, also for an image.
Means, deviations, minima and maxima merge exactly; quantiles merge as lerobot does it, by their count-weighted mean,
which is only an approximation of the quantile of the union.
"""

from io import BytesIO
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from tap_ray.dataset.layout import QUANTILES

FeatureStats = Mapping[str, np.ndarray]


def vector_stats(values_TD: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of a (T, D) or (T,) feature over its T frames."""
    values = np.asarray(values_TD, np.float64).reshape(len(values_TD), -1)
    result = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)], np.int64),
    }
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return result | dict(zip(QUANTILES, quantiles, strict=True))


def image_stats(rgb_TYX3: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of T uint8 images over all their pixels, from one histogram per channel (exact and fast)."""
    flat = rgb_TYX3.reshape(-1, 3)
    histograms = np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(3)])
    return _stats_of_histogram(histograms, num_frames=len(rgb_TYX3))


def mask_stats(mask_png: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Statistics of T mask files. The shape is (3, 1, 1) as for any image, because lerobot requires it even for one
    channel."""
    histogram = np.sum([np.array(Image.open(BytesIO(png)).convert("L").histogram()) for png in mask_png], axis=0)
    return _stats_of_histogram(np.stack([histogram] * 3), num_frames=len(mask_png))


def _stats_of_histogram(histogram_C256: np.ndarray, *, num_frames: int) -> dict[str, np.ndarray]:
    """Statistics of pixels in [0, 1] whose 8-bit values are counted."""
    level = np.arange(256) / 255.0
    total = histogram_C256.sum(1)
    cumulative = histogram_C256.cumsum(1)
    mean = (histogram_C256 * level).sum(1) / total
    variance = (histogram_C256 * (level - mean[:, None]) ** 2).sum(1) / total
    result = {
        "min": level[(histogram_C256 > 0).argmax(1)],
        "max": level[255 - (histogram_C256 > 0)[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    for name, quantile in QUANTILES.items():
        result[name] = level[(cumulative >= quantile * total[:, None]).argmax(1)]
    shaped = {name: value.reshape(3, 1, 1) for name, value in result.items()}
    return shaped | {"count": np.array([num_frames], np.int64)}


def merge_feature_stats(stacked: FeatureStats) -> dict[str, np.ndarray]:
    """Statistics of the union of P disjoint parts (parallel variance, Chan et al. 1979).

    Args:
        stacked: min, max, ... each (P, *shape), count (P, 1).
    """
    count_P = stacked["count"][:, 0]
    total = count_P.sum()

    def weighted(values: np.ndarray) -> np.ndarray:
        return (values * count_P.reshape(-1, *[1] * (values.ndim - 1))).sum(0) / total

    mean = weighted(stacked["mean"])
    return {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt(weighted(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)),
        "count": np.array([total], np.int64),
        **{name: weighted(stacked[name]) for name in QUANTILES},
    }


def merge_stats(
    stacked: Mapping[str, FeatureStats], before: Mapping[str, FeatureStats] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Merge P parts of every feature with the statistics merged before.

    Args:
        stacked: feature -> name -> (P, *shape).
        before: feature -> name -> shape; None at the beginning.
    """
    merged: dict[str, dict[str, np.ndarray]] = {}
    for name, part in stacked.items():
        if before:
            part = {key: np.concatenate([before[name][key][None], value]) for key, value in part.items()}
        merged[name] = merge_feature_stats(part)
    return merged


def stats_to_json(stats: Mapping[str, FeatureStats]) -> dict[str, Any]:
    """Statistics as nested lists, as in meta/stats.json."""
    return {name: {key: value.tolist() for key, value in part.items()} for name, part in stats.items()}


def stats_from_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Inverse of `stats_to_json`."""
    return {name: {key: np.array(value) for key, value in part.items()} for name, part in data.items()}
