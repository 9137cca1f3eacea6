"""Which worker trains on what, where the number of workers changes during a run."""

from collections import Counter
from itertools import islice

import pytest

from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.schedule import iterate, schedule
from tap_ray.dataset.windows import WindowConfig, num_batches
from tap_ray.types import ALL, Shard
from tests.made_data import write_made_dataset

CONFIG = WindowConfig(batch_size=1, group_size=2, holdout_every=0, reach_steps=0)
SEED = 5
Batch = tuple[int, int, int]
"""Epoch, first episode of the group, number within the group."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("made"), num_episodes=7, tasks=("play",)))


def batches_of(dataset: DatasetInfo, shard: Shard, num: int) -> list[Batch]:
    """A worker's next batches."""
    every = (
        (part.epoch, part.group[0], number)
        for part in schedule(dataset, CONFIG, seed=SEED, shard=shard)
        for number in range(part.first_batch, num_batches(dataset, part.group, CONFIG))
    )
    return list(islice(every, num))


@pytest.mark.parametrize(
    "phases",
    [
        [(2, 3), (1, 10**3)],
        [(1, 5), (3, 300)],
        [(2, 40), (3, 7), (1, 1), (2, 200)],
        [(3, 1), (1, 4), (3, 2), (2, 300)],
    ],
)
def test_each_batch_of_an_epoch_is_seen_once_however_many_workers_there_were(
    dataset: DatasetInfo, phases: list[tuple[int, int]]
):
    """`phases`: (workers, batches that each has). Nothing is twice, and nothing of an epoch that is over is missing."""
    seen: list[Batch] = []
    over = 0
    for number, (workers, had) in enumerate(phases):
        before = tuple(phases[:number])
        shards = [Shard(worker=worker, num_workers=workers, before=before) for worker in range(workers)]
        each = [batches_of(dataset, shard, had) for shard in shards]
        seen += [batch for worker_batches in each for batch in worker_batches]
        over = min(worker_batches[-1][0] for worker_batches in each)  # epochs that the slowest worker has left behind
    assert max(Counter(seen).values()) == 1
    per_epoch = Counter(epoch for epoch, _, _ in seen)
    assert over > 3
    assert {per_epoch[epoch] for epoch in range(over)} == {int(dataset.lengths.sum()) - len(dataset)}


def test_a_run_that_goes_on_after_a_change_resumes_within_it(dataset: DatasetInfo):
    before = ((2, 9), (3, 4))
    whole = batches_of(dataset, Shard(worker=1, num_workers=2, before=before), 60)
    assert batches_of(dataset, Shard(start_batch=23, worker=1, num_workers=2, before=before), 37) == whole[23:]


def test_windows_after_a_change_are_those_that_nobody_has_had(dataset: DatasetInfo):
    """By what is in them: states name episode and step."""
    epoch = int(dataset.lengths.sum()) - len(dataset)
    alone = [window.state.tobytes() for window in islice(iterate(dataset, CONFIG, seed=SEED, shard=ALL), epoch)]
    had = [Shard(worker=worker, num_workers=2) for worker in range(2)]
    seen = [
        window.state.tobytes()
        for shard in had
        for window in islice(iterate(dataset, CONFIG, seed=SEED, shard=shard), 4)
    ]
    rest = iterate(dataset, CONFIG, seed=SEED, shard=Shard(before=((2, 4),)))
    seen += [window.state.tobytes() for window in islice(rest, epoch - len(seen))]
    assert Counter(seen) == Counter(alone)


def test_action_chunks_are_numbered_on():
    """5 batches of 2 workers and 3 of one: the next of three workers begin with number 13."""
    assert Shard(num_workers=3, before=((2, 5), (1, 3))).num_before == 13
