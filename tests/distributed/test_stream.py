"""Windows through Ray Data are those of `schedule.iterate`, in its order."""

import dataclasses
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tap_ray.dataset.mixture import joined, open_mixture
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed import stream
from tap_ray.errors import ConfigError
from tap_ray.types import ALL, Shard, Window

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Data copying its own settings
]
CONFIG = WindowConfig(batch_size=4, group_size=6, holdout_every=5, k_max=3)


def same(one: Window, other: Window) -> bool:
    for field in dataclasses.fields(Window):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not np.array_equal(a, b))):
            return False
    return True


@pytest.mark.parametrize(
    ("worker", "num_workers", "start"),
    [(1, 2, 0), (0, 1, 61), *(pytest.param(*shard, marks=pytest.mark.long_proof) for shard in ((0, 1, 0), (0, 2, 7)))],
)
def test_the_sequence_of_a_single_process(toy_dataset: Path, worker: int, num_workers: int, start: int):
    """Over several epochs (45 batches each), from the beginning and from the middle of a group."""
    shard = Shard(start_batch=start, worker=worker, num_workers=num_workers)
    traveled = stream.batches(toy_dataset, CONFIG, seed=3, shard=shard)
    expected = iterate(open_dataset(toy_dataset), CONFIG, seed=3, shard=shard)
    for _, (one, other) in zip(range(100), zip(traveled, expected, strict=False), strict=False):
        assert same(one, other)
    traveled.close()


def test_no_goal_and_no_reach(toy_dataset: Path):
    """What alignment streams: absent fields stay None on the way."""
    config = replace(CONFIG, k_max=0, reach_steps=0)
    window = next(stream.batches(toy_dataset, config, seed=3))
    assert window.goal_rgb is None
    assert window.reach is None
    assert same(window, next(iterate(open_dataset(toy_dataset), config, seed=3)))


def test_resuming_decodes_nothing_before_its_group(toy_dataset: Path):
    """Pieces from batch 61 on are the tail of those from batch 0, the first cut inside its group."""
    dataset = open_dataset(toy_dataset)
    whole = list(islice(stream.schedule(dataset, CONFIG, seed=3, shard=ALL), 12))
    [first, *rest] = islice(stream.schedule(dataset, CONFIG, seed=3, shard=Shard(start_batch=61)), 6)
    at = next(i for i, piece in enumerate(whole) if (piece.epoch, piece.group) == (first.epoch, first.group))
    assert first.first_batch > 0
    assert rest == whole[at + 1 : at + 6]


def test_the_pipeline_goes_on_when_one_is_used_up(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "GROUPS_PER_PIPELINE", 2)
    traveled = stream.batches(toy_dataset, CONFIG, seed=3)
    expected = iterate(open_dataset(toy_dataset), CONFIG, seed=3)
    assert all(same(next(traveled), next(expected)) for _ in range(60))
    traveled.close()


def test_the_sequence_of_a_mixture(toy_dataset: Path, tmp_path: Path):
    """Three windows of one dataset and one of a copy of it, from the middle of a group on."""
    shutil.copytree(toy_dataset, tmp_path / "copy")
    mixture, shard = open_mixture([toy_dataset, tmp_path / "copy"], [3.0, 1.0]), Shard(start_batch=7)
    parts = zip(mixture.sets, mixture.windows(CONFIG), mixture.seeds(3), strict=True)
    expected = [iterate(dataset, windows, seed=seed, shard=shard) for dataset, windows, seed in parts]
    traveled = stream.mixed_batches(mixture, CONFIG, seed=3, shard=shard)
    for _ in range(20):
        assert same(next(traveled), joined([next(part) for part in expected]))
    traveled.close()


def test_too_little_data(toy_dataset: Path):
    with pytest.raises(
        ConfigError, match=r"18 training episodes .* a single batch of 500 windows\. Lower the batch size"
    ):
        next(stream.batches(toy_dataset, replace(CONFIG, batch_size=500, holdout_every=4, num_episodes=24), seed=3))


def test_batches_of_one_size(toy_dataset: Path):
    with pytest.raises(ConfigError, match="drop_last must be true"):
        next(stream.batches(toy_dataset, replace(CONFIG, drop_last=False), seed=3))
