"""Normalisation: inverse pairs, the gripper kept, nothing blown up."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tap_ray.dataset.lerobot import open_dataset, read_episode
from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.transforms import Normalise
from tap_ray.errors import DataError


def hand_made_stats(std_dx: float = 0.02) -> dict[str, dict[str, np.ndarray]]:
    action = {
        "mean": np.array([0.01, 0, 0, 0, 0, 0, 0.4]),
        "std": np.array([std_dx, 0.02, 0.02, 0.1, 0.1, 0.1, 0.9]),
        "q01": np.full(7, -0.04),
        "q99": np.full(7, 0.02),
    }
    return {"action": action, "observation.state": {key: value.copy() for key, value in action.items()}}


def test_mean_and_deviation_by_hand(made: SimpleNamespace) -> None:
    normalise = Normalise(norm_stats(hand_made_stats(), made.spec).action)
    values = np.array([0.05, -0.02, 0, 0, 0, 0.3, -1], np.float32)
    np.testing.assert_allclose(normalise(values), [2, -1, 0, 0, 0, 3, -1], atol=1e-6)


def test_quantiles_by_hand(made: SimpleNamespace) -> None:
    normalise = Normalise(norm_stats(hand_made_stats(), made.spec, mode="quantile").action)
    np.testing.assert_allclose(normalise(np.full(7, -0.04))[:3], [-1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(normalise(np.full(7, 0.02))[:3], [1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("mode", ["mean_std", "quantile"])
def test_the_gripper_is_kept(made: SimpleNamespace, mode: str) -> None:
    norm = norm_stats(hand_made_stats(), made.spec, mode=mode)  # type: ignore[arg-type]
    assert (norm.action.offset[6], norm.action.scale[6]) == (0.0, 1.0)
    assert norm.state.offset[6] != 0.0


def test_a_slot_that_never_moves_is_not_blown_up(made: SimpleNamespace) -> None:
    normalise = Normalise(norm_stats(hand_made_stats(std_dx=0.0), made.spec).action)
    values = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
    assert normalise(values)[0] == pytest.approx(0, abs=1e-6)
    values[0] += 0.001  # a millimetre is 1 % of the slot's range, 0.1 m
    assert normalise(values)[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["mean_std", "quantile"])
def test_inverse_pairs_on_real_statistics(play_dataset: Path, mode: str) -> None:
    dataset = open_dataset(play_dataset)
    norm = norm_stats(dataset.stats, dataset.spec, mode=mode)  # type: ignore[arg-type]
    for part, name in ((norm.action, "action"), (norm.state, "observation.state")):
        values = read_episode(dataset, 3, [name])[name]
        before, normalise = values.copy(), Normalise(part)
        small = normalise(values)
        np.testing.assert_allclose(normalise.inverse(small), values, atol=1e-6)
        assert normalise.inverse.inverse == normalise
        np.testing.assert_array_equal(values, before)
        assert small.dtype == np.float32


def test_json_and_pickle_round_trips(made: SimpleNamespace) -> None:
    norm = norm_stats(hand_made_stats(), made.spec)
    assert NormStats.from_json(norm.to_json()) == norm
    normalise = Normalise(norm.action)
    normalise(np.zeros(7))
    assert pickle.loads(pickle.dumps(normalise)) == normalise


def test_missing_or_foreign_statistics(made: SimpleNamespace) -> None:
    with pytest.raises(DataError, match=r"of 'observation.state' give mean = \[\]; expected 7 finite numbers"):
        norm_stats({}, made.spec)
    stats = hand_made_stats()
    stats["action"]["std"][2] = np.nan
    with pytest.raises(DataError, match="statistics of 'action' give std"):
        norm_stats(stats, made.spec)
