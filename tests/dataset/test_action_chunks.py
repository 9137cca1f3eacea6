"""Batches of action chunks: whose they are, where their numbers lie, in which order they come, and no image read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_ray.dataset import action_chunks, layout
from tap_ray.dataset.action_chunks import ActionChunkConfig, batch, bytes_read, counts, held_out_batches, load
from tap_ray.dataset.reader import open_dataset, read_episode
from tap_ray.errors import ConfigError, DataError
from tap_ray.specs import UNIFIED_ACTION, UNIFIED_STATE

CONFIG = ActionChunkConfig(horizon=5, batch_size=12, holdout_every=4)


def test_chunks_are_those_of_one_episode(play_dataset: Path):
    """Every chunk is found again in one episode, in its dims, normalized as its own dataset says."""
    chunks = batch([load(play_dataset, CONFIG)], [1.0], CONFIG, seed=0, number=3)
    dataset, norm = open_dataset(play_dataset), load(play_dataset, CONFIG).norm
    assert chunks.action.shape == (12, 5, len(UNIFIED_ACTION))
    assert chunks.state.shape == (12, 5, len(UNIFIED_STATE))
    names = [f"arm0/{slot.name}" for slot in dataset.spec.action]
    dims = [UNIFIED_ACTION.index(name) for name in names]
    assert chunks.dim_mask[0].nonzero()[0].tolist() == sorted(dims)
    assert not chunks.action[:, :, ~chunks.dim_mask[0]].any()
    train, _ = CONFIG.episodes(dataset)
    episodes = [norm.action.normalize(read_episode(dataset, int(i), [layout.ACTION]).action) for i in train]
    for row in chunks.action[:, :, dims]:
        found = [
            start
            for episode in episodes
            for start in range(len(episode) - 4)
            if np.allclose(episode[start : start + 5], row, atol=1e-5)
        ]
        assert found


def test_an_epoch_has_every_window_once_and_the_next_is_another(play_dataset: Path):
    chunks, size = load(play_dataset, CONFIG), 8
    num = len(chunks.first_W)
    drawn = np.concatenate(
        [action_chunks.shuffled_windows(chunks, 0, 0, start, size) for start in range(0, 2 * num, size)]
    )
    assert sorted(drawn[:num]) == sorted(chunks.first_W)
    assert sorted(drawn[num : 2 * num]) == sorted(chunks.first_W)
    assert not np.array_equal(drawn[:num], drawn[num : 2 * num])


def test_a_batch_follows_from_seed_and_number_alone(play_dataset: Path):
    sets = [load(play_dataset, CONFIG)] * 2
    one, two = (batch(sets, [1, 3], CONFIG, seed=5, number=7) for _ in range(2))
    np.testing.assert_array_equal(one.action, two.action)
    assert np.bincount(one.source).tolist() == [3, 9]
    assert not np.array_equal(one.action, batch(sets, [1, 3], CONFIG, seed=6, number=7).action)


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [([1], 8, [8]), ([1, 1, 1], 8, [3, 3, 2]), ([2, 1], 9, [6, 3]), ([0.5, 0.25, 0.25], 4, [2, 1, 1])],
)
def test_shares_of_a_batch_by_hand(weights: list[float], size: int, expected: list[int]):
    assert counts(weights, size) == expected


def test_shares_that_make_no_sense():
    with pytest.raises(
        ConfigError, match=r"Each weight must be finite and above 0, and so must their sum; got \[1, 0\]"
    ):
        counts([1, 0], 8)
    with pytest.raises(ConfigError, match="the dataset of weight 1 gets no window at all"):
        counts([100, 1], 8)


def test_held_out_episodes_are_held_out(play_dataset: Path):
    train = load(play_dataset, CONFIG)
    out = load(play_dataset, CONFIG, held_out=True, norm=train.norm)
    [held_out, *_] = held_out_batches(out, CONFIG, source=0, seed=0, num=12)
    [again, *_] = held_out_batches(out, CONFIG, source=0, seed=0, num=12)
    np.testing.assert_array_equal(held_out.action, again.action)
    seen = {row.tobytes() for row in train.action_FA}
    assert not any(step.tobytes() in seen for row in held_out.action for step in row)


def test_no_image_is_read(play_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    columns_read: list[list[str] | None] = []
    really = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
        columns_read.append(columns)
        return really(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    load(play_dataset, CONFIG)
    assert columns_read
    assert all(columns == [layout.STATE, layout.ACTION] for columns in columns_read)
    needed, total = bytes_read(play_dataset)
    assert 0 < needed < total / 2


def test_too_short(play_dataset: Path):
    with pytest.raises(DataError, match=r"has 50 steps, the length of a window\. Collect more or longer episodes"):
        load(play_dataset, ActionChunkConfig(horizon=50))
