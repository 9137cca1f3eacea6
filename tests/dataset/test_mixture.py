"""Several datasets of play in each batch: whose windows, in which order, normalized by what, and what is refused."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest

from tap_ray.dataset.layout import ACTION
from tap_ray.dataset.mixture import Mixture, alone, joined, moments, open_mixture, require_alike, require_usable
from tap_ray.dataset.norm_stats import norm_stats
from tap_ray.dataset.reader import DatasetInfo, read_episodes, stats_of
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import ConfigError, DataError, SpecError
from tap_ray.types import Shard, Window
from tests.made_data import write_made_dataset

CONFIG = WindowConfig(batch_size=6, group_size=3, holdout_every=3, k_max=2, reach_steps=0)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Twice as many windows from the first, which goes left, as from the second, which goes right every other time."""
    root = tmp_path_factory.mktemp("mixture")
    left = write_made_dataset(root / "left", num_episodes=9, tasks=("play",))
    both = write_made_dataset(root / "both", num_episodes=4, tasks=("play", "play"))
    return open_mixture([left, both], [1.0, 0.5])


def batches(mixture: Mixture, config: WindowConfig, shard: Shard) -> Iterator[Window]:
    """What `stream.mixed_batches` gives, in this process."""
    parts = zip(mixture.sets, mixture.windows(config), mixture.seeds(5), strict=True)
    streams = [iterate(dataset, windows, seed=seed, shard=shard) for dataset, windows, seed in parts]
    return map(joined, zip(*streams, strict=True))


def same(a: Window, b: Window) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


def test_each_dataset_has_its_share_of_every_batch(mixture: Mixture) -> None:
    assert [(windows.batch_size, windows.group_size) for windows in mixture.windows(CONFIG)] == [(4, 2), (2, 1)]
    states = [
        np.concatenate([e.state for e in read_episodes(dataset, range(len(dataset)))]) for dataset in mixture.sets
    ]
    for batch in islice(batches(mixture, CONFIG, Shard()), 40):
        for row, state in enumerate(batch.state):
            assert (states[row >= 4] == state).all(1).any(), "four of the first, then two of the second"
        assert batch.rgb.shape[0] == batch.action.shape[0] == len(batch.k) == 6
        assert batch.goal_rgb is not None


@pytest.mark.parametrize("start", [1, 7, 23])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_resuming_gives_the_same_sequence(mixture: Mixture, start: int, num_workers: int) -> None:
    for worker in range(num_workers):
        shard = Shard(worker=worker, num_workers=num_workers)
        whole = list(islice(batches(mixture, CONFIG, shard), start + 3))
        resumed = list(islice(batches(mixture, CONFIG, replace(shard, start_batch=start)), 3))
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_rows_of_second_images_are_those_of_the_whole_batch(mixture: Mixture) -> None:
    parts = [next(iterate(dataset, replace(CONFIG, segment=3), seed=0)) for dataset in mixture.sets]
    batch = joined(parts)
    assert batch.goal_row is not None
    assert batch.goal_rgb is None
    np.testing.assert_array_equal(batch.goal_row, np.arange(12) + batch.k)
    for row, goal in enumerate(batch.goal_row):
        assert (goal < 6) == (row < 6), "both images of a pair are of one dataset"


def test_a_mixture_of_one_is_its_dataset(mixture: Mixture) -> None:
    dataset = mixture.sets[0]
    one = alone(dataset)
    assert (one.windows(CONFIG), one.seeds(5)) == ([CONFIG], [5])
    window = next(iterate(dataset, CONFIG, seed=5))
    assert joined([window]) is window
    expected = norm_stats(stats_of(dataset, split_episodes(dataset, CONFIG)[0]), dataset.spec)
    assert norm_stats(moments(one, CONFIG), one.spec) == expected


def test_names_in_metrics_are_those_of_the_folders(mixture: Mixture) -> None:
    def names(*paths: str) -> list[str]:
        return Mixture(sets=tuple(replace(mixture.sets[0], path=Path(path)) for path in paths), weights=()).names

    assert mixture.names == ["left", "both"]
    assert names("a/play", "b/play", "c/17:30 (1)") == ["play_0", "play_1", "17_30_1_"]


def test_numbers_are_normalized_as_often_as_they_are_drawn(mixture: Mixture) -> None:
    """Frames of the held-out episodes (2, 5, 8 and 2) count for nothing; a third is of the first, larger set."""
    mixture = replace(mixture, weights=(0.5, 1.0))
    of_sets = [
        np.concatenate([e.action for e in read_episodes(dataset, kept)])
        for dataset, kept in zip(mixture.sets, ([0, 1, 3, 4, 6, 7], [0, 1, 3]), strict=True)
    ]
    frames = np.concatenate(of_sets)
    weight = np.repeat([1 / 3 / len(of_sets[0]), 2 / 3 / len(of_sets[1])], [len(actions) for actions in of_sets])
    mean = weight @ frames
    found = moments(mixture, CONFIG)[ACTION]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["std"], np.sqrt(weight @ (frames - mean) ** 2), rtol=1e-5)


def other(dataset: DatasetInfo, size: int = 48, **spec: object) -> DatasetInfo:
    """Another dataset, as far as the headers go."""
    header = replace(dataset.header, spec=replace(dataset.spec, **spec), image_size=(size, size))  # type: ignore[arg-type]
    return replace(dataset, path=Path("other"), header=header)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"robot": "panda"}, "robot: dataset other has 'panda', dataset .*left has 'square'"),
        ({"control_hz": 10.0}, "control_hz: dataset other has 10.0, dataset .*left has 5.0"),
        ({"cameras": ("main", "wrist")}, r"cameras: dataset other has \[main, wrist\], dataset .*left has \[main\]"),
    ],
)
def test_other_robots_rates_and_cameras_are_refused_by_name(mixture: Mixture, spec: dict, message: str) -> None:
    dataset = mixture.sets[0]
    with pytest.raises(SpecError, match=message):
        require_alike([dataset, other(dataset, **spec)])


def test_other_images_and_the_same_dataset_twice(mixture: Mixture) -> None:
    dataset = mixture.sets[0]
    require_alike([dataset, other(dataset)])
    with pytest.raises(DataError, match=r"images of other have 96 x 96 px, those of .*left 48 x 48 px: one network"):
        require_alike([dataset, other(dataset, size=96)])
    with pytest.raises(DataError, match=r"left is named twice\. Name it once: its weight \(PATH:WEIGHT\) is its share"):
        open_mixture([dataset.path, mixture.sets[1].path, dataset.path], [1.0, 1.0, 1.0])


def test_a_share_that_is_no_window_and_a_set_too_small_for_its_share(mixture: Mixture) -> None:
    with pytest.raises(ConfigError, match=r"1 windows in a batch, the dataset of weight 0.5 gets no window at all"):
        mixture.windows(replace(CONFIG, batch_size=1))
    require_usable(mixture, CONFIG, num_workers=1)
    halves, large = replace(mixture, weights=(1.0, 1.0)), replace(CONFIG, batch_size=60, group_size=99)
    with pytest.raises(ConfigError, match=r"both: 3 training episodes .* a single batch of 30 windows"):
        require_usable(halves, large, num_workers=1)
