"""What an encoded episode holds."""

from types import SimpleNamespace

import numpy as np
import pytest

from tap_ray.dataset.encode import encode_episode, object_displacement_m
from tap_ray.media.image import decode_jpeg, decode_mask, encode_mask


def test_images_survive_jpeg_and_masks_survive_exactly(made: SimpleNamespace) -> None:
    trajectory = made.trajectory(1)
    episode = encode_episode(trajectory, index=1, task="play")
    assert episode.mask_png is not None
    assert trajectory.robot_mask is not None
    for t in range(len(trajectory)):
        error = np.abs(decode_jpeg(episode.image_jpeg[t]).astype(float) - trajectory.rgb[t])
        assert error.mean() < 4  # of 255
        np.testing.assert_array_equal(decode_mask(episode.mask_png[t]), trajectory.robot_mask[t] == 255)


def test_mask_of_odd_width() -> None:
    mask = np.eye(13, dtype=np.uint8)[:, :11] * 255
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask == 255)


def test_meta_is_computed_and_the_callers_wins(made: SimpleNamespace) -> None:
    episode = encode_episode(made.trajectory(1, steps=10), index=1, task="play", meta={"seed": 5, "num_clipped": 9})
    assert episode.meta["contact_rate"] == pytest.approx(0.2)  # steps 5 and 6 of 10
    assert episode.meta["object_displacement_m"] == pytest.approx(0.05)
    assert episode.meta["success"] is True
    assert (episode.meta["seed"], episode.meta["num_clipped"]) == (5, 9)


def test_displacement_is_the_largest_ever_not_the_last() -> None:
    pose = np.zeros((3, 2, 7), np.float32)
    pose[1, 0, :3] = [0.3, 0.4, 0.0]  # 0.5 m away, then back
    assert object_displacement_m(pose) == pytest.approx(0.5)
    assert object_displacement_m(np.zeros((3, 0, 7), np.float32)) == 0.0
