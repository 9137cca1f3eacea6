"""Normalization statistics: by hand and on made-up play, the gripper kept, nothing blown up."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tap_ray.dataset.lerobot import open_dataset, read_episode
from tap_ray.dataset.norm_stats import NormStats, SlotNorm, norm_stats
from tap_ray.errors import CheckpointError, DataError


def hand_made_stats(std_dx: float = 0.02) -> dict[str, dict[str, np.ndarray]]:
    action = {
        "mean": np.array([0.01, 0, 0, 0, 0, 0, 0.4]),
        "std": np.array([std_dx, 0.02, 0.02, 0.1, 0.1, 0.1, 0.9]),
    }
    return {"action": action, "observation.state": {key: value.copy() for key, value in action.items()}}


def normalized(norm: SlotNorm, values: np.ndarray) -> np.ndarray:
    return (values - np.array(norm.offset)) / np.array(norm.scale)


def test_mean_and_deviation_by_hand(made: SimpleNamespace) -> None:
    norm = norm_stats(hand_made_stats(), made.spec).action
    values = np.array([0.05, -0.02, 0, 0, 0, 0.3, -1], np.float32)
    np.testing.assert_allclose(normalized(norm, values), [2, -1, 0, 0, 0, 3, -1], atol=1e-6)


def test_the_gripper_is_kept(made: SimpleNamespace) -> None:
    norm = norm_stats(hand_made_stats(), made.spec)
    assert (norm.action.offset[6], norm.action.scale[6]) == (0.0, 1.0)
    assert norm.state.offset[6] != 0.0


def test_a_constant_slot_is_not_amplified(made: SimpleNamespace) -> None:
    norm = norm_stats(hand_made_stats(std_dx=0.0), made.spec).action
    values = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
    assert normalized(norm, values)[0] == pytest.approx(0, abs=1e-6)
    values[0] += 0.001  # a millimeter is 1 % of the slot's range, 0.1 m
    assert normalized(norm, values)[0] == pytest.approx(1, abs=1e-4)


def test_normalized_play_has_mean_0_and_deviation_1(play_dataset: Path) -> None:
    dataset = open_dataset(play_dataset)
    norm = norm_stats(dataset.stats, dataset.spec).action
    values = np.concatenate([read_episode(dataset, index, ["action"]).action for index in range(len(dataset))])
    np.testing.assert_allclose(normalized(norm, values)[:, :6].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized(norm, values)[:, :6].std(0), 1, atol=1e-5)


def test_json_round_trip(made: SimpleNamespace) -> None:
    norm = norm_stats(hand_made_stats(), made.spec)
    assert NormStats.from_json(norm.to_json()) == norm
    assert NormStats.from_json({"mode": "mean_std", **norm.to_json()}) == norm, "as files written before have it"


def test_missing_or_foreign_statistics(made: SimpleNamespace) -> None:
    with pytest.raises(DataError, match=r"of 'observation.state' give mean = \[\]; expected 7 finite numbers"):
        norm_stats({}, made.spec)
    stats = hand_made_stats()
    stats["action"]["std"][2] = np.nan
    with pytest.raises(DataError, match="statistics of 'action' give std"):
        norm_stats(stats, made.spec)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"state": {}}, r"^final/norm_stats\.json lacks action: it was not written by a job of tap_ray\."),
        ({"state": {"names": []}, "action": {}}, r"json: state lacks offset, scale: "),
    ],
)
def test_a_file_that_lacks_a_key_names_it(data, message):
    with pytest.raises(CheckpointError, match=message):
        NormStats.from_json(data, where=Path("final/norm_stats.json"))
