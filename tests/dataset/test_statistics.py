"""Statistics against values worked out by hand, and against those of the whole."""

import numpy as np
import pytest

from tap_ray.dataset.statistics import image_stats, mask_stats, merge_stats, vector_stats
from tap_ray.media.image import encode_mask


def test_vector_stats_of_zero_to_four_by_hand() -> None:
    stats = vector_stats(np.array([[4.0], [0.0], [2.0], [1.0], [3.0]]))
    assert (stats["min"], stats["max"], stats["mean"], stats["q50"]) == ([0.0], [4.0], [2.0], [2.0])
    assert stats["std"] == pytest.approx(np.sqrt(2.0))
    assert stats["q01"] == pytest.approx(0.04)
    assert stats["q90"] == pytest.approx(3.6)
    assert stats["count"].tolist() == [5]


def test_scalars_have_shape_one() -> None:
    assert vector_stats(np.arange(3))["mean"].shape == (1,)


def test_image_stats_of_a_half_black_half_white_image() -> None:
    rgb = np.zeros((2, 4, 4, 3), np.uint8)
    rgb[:, :2] = 255
    rgb[..., 2] = 51
    stats = image_stats(rgb)
    assert all(stats[key].shape == (3, 1, 1) for key in ("min", "max", "mean", "std", "q01", "q99"))
    np.testing.assert_allclose(stats["mean"].ravel(), [0.5, 0.5, 0.2])
    np.testing.assert_allclose(stats["std"].ravel(), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(stats["min"].ravel(), [0, 0, 0.2])
    np.testing.assert_allclose(stats["max"].ravel(), [1, 1, 0.2])
    np.testing.assert_allclose(stats["q10"].ravel(), [0, 0, 0.2])
    np.testing.assert_allclose(stats["q90"].ravel(), [1, 1, 0.2])
    assert stats["count"].tolist() == [2]


def test_image_stats_equal_numpys_on_noise() -> None:
    rgb = np.random.default_rng(0).integers(10, 240, (3, 8, 8, 3)).astype(np.uint8)
    stats, flat = image_stats(rgb), rgb.reshape(-1, 3) / 255
    for key, value in {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}.items():
        np.testing.assert_allclose(stats[key].ravel(), value, atol=1e-12)


def test_mask_stats_of_a_quarter_covered() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 255
    stats = mask_stats([encode_mask(mask)] * 3)
    np.testing.assert_allclose(stats["mean"].ravel(), [0.25] * 3)
    np.testing.assert_allclose(stats["q50"].ravel(), [0.0] * 3)
    np.testing.assert_allclose(stats["q90"].ravel(), [1.0] * 3)
    assert stats["count"].tolist() == [3]


def test_merged_moments_equal_those_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(i, 1 + i, (5 + 7 * i, 2)) for i in range(4)]
    each = [vector_stats(part) for part in parts]
    stacked = {key: np.stack([stats[key] for stats in each]) for key in each[0]}
    merged, whole = merge_stats({"x": stacked})["x"], vector_stats(np.concatenate(parts))
    for key in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[key], whole[key], rtol=1e-12)


def test_merged_quantiles_are_lerobots_count_weighted_mean() -> None:
    one, three = vector_stats(np.array([[10.0]])), vector_stats(np.array([[2.0], [2.0], [2.0]]))
    stacked = {key: np.stack([one[key], three[key]]) for key in one}
    assert merge_stats({"x": stacked})["x"]["q50"].tolist() == [4.0]  # (1 * 10 + 3 * 2) / 4


def test_merging_in_two_steps_keeps_count_and_mean() -> None:
    each = [vector_stats(np.array([[value]])) for value in (1.0, 2.0, 6.0)]
    first = {"x": {key: np.stack([part[key] for part in each[:2]]) for key in each[0]}}
    last = {"x": {key: each[2][key][None] for key in each[0]}}
    merged = merge_stats(last, merge_stats(first))["x"]
    assert (merged["mean"].tolist(), merged["count"].tolist()) == ([3.0], [3])
    assert merged["std"] == pytest.approx(np.sqrt((4 + 1 + 9) / 3))
