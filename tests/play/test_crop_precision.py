"""Crops against the simulator's poses: by hand, and of real play whose cameras move."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from jobs.collect_play import fleet, planned
from tap_ray.dataset.crops import CROPS, cut
from tap_ray.dataset.lerobot import DatasetWriter, open_dataset
from tap_ray.distributed.record import header_of
from tap_ray.play.crop_precision import Precision, measure, num_right
from tap_ray.play.settings import PlayJobConfig
from tests.carried_square import FROM, STEPS, TO, carried

COLUMN_ROW = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""A camera that shows x y (m) at column x and row y."""


class UpsideDown(gym.vector.VectorWrapper):
    """Robots whose camera says that it hangs upside down."""

    def reset(self, **options):
        obs, info = super().reset(**options)
        turned = np.array([[-1.0, 0, 95], [0, -1, 95], [0, 0, 1]])
        return obs, info | {"camera": turned @ info["camera"]}


def test_a_crop_is_right_if_it_shows_what_was_moved():
    crops = cut(*carried(), CROPS)
    carried_T3 = np.repeat([[FROM[1] + 3.0, FROM[0] + 3.0, 1.0]], STEPS, axis=0)
    still_T3 = np.repeat([[TO[1] + 3.0, TO[0] + 3.0, 1.0]], STEPS, axis=0)
    nothing_T3 = np.zeros((STEPS, 3))
    carried_T3[7:] += 1.0
    assert num_right(crops, np.stack([nothing_T3, carried_T3, still_T3], axis=1), COLUMN_ROW) == 1
    still_T3[7:] += 2.0
    assert num_right(crops, np.stack([nothing_T3, carried_T3, still_T3], axis=1), COLUMN_ROW) == 0
    assert str(Precision(bouts=9, crops=8, right=6)) == (
        "Crops for Stage 1: 8 of 9 contacts have one; 6 of them, 75 % [41, 93], show the object that was moved, by the "
        "simulator's poses."
    )
    assert str(Precision(bouts=2, crops=0, right=0)) == "Crops for Stage 1: 0 of 2 contacts have one."


@pytest.mark.parametrize("randomize", [True, pytest.param(False, marks=pytest.mark.long_proof)])
def test_most_crops_of_real_play_are_right_also_where_the_camera_moves(randomize: bool, tmp_path: Path):
    plan, world = planned(PlayJobConfig(explorer="contact", randomize=randomize, seed=3))
    robots = fleet(plan, 4, None, world=world)
    header = header_of(plan, world.spec(plan.env), **world.header_fields)
    with DatasetWriter(tmp_path / "play", header) as writer:
        for outcome in robots.run([0, 1, 2, 3]) + robots.run([4, 5, 6, 7]):
            assert outcome.episode is not None
            writer.append(outcome.episode)
    dataset = open_dataset(tmp_path / "play")
    make = partial(world.make_ee_control, plan.env, 1)
    found = measure(dataset, make)
    assert found is not None
    assert found.crops >= 8
    assert found.right >= 0.7 * found.crops
    wrong = measure(dataset, lambda: UpsideDown(make()))
    assert wrong is not None
    assert wrong.right <= 0.5 * found.right
