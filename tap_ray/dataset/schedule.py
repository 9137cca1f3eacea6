"""Determines which worker trains on which groups of episodes, in which order. It follows from the seed and a `Shard`.

How many batches a group gives follows from the episodes' lengths alone, so a position in the endless sequence is found
again without decoding what comes before it, also where the number of workers has changed since.
"""

from dataclasses import dataclass, replace
from itertools import chain, count, takewhile
from typing import Iterable, Iterator, Sequence

from tap_ray.dataset.reader import DatasetInfo
from tap_ray.dataset.windows import (
    WindowConfig,
    epoch_groups,
    group_batches,
    num_batches,
    num_windows,
    split_episodes,
)
from tap_ray.errors import ConfigError
from tap_ray.types import ALL, Shard, Window


@dataclass(frozen=True, kw_only=True)
class GroupSlice:
    """Episodes that are decoded together: a group, or the rest of one."""

    epoch: int
    group: tuple[int, ...]
    """Episode indices."""
    first_batch: int
    """Number of batches at its beginning that were trained on before the run was resumed."""


Part = tuple[GroupSlice, int]
"""A group or the rest of one, and its number of batches."""


def schedule(dataset: DatasetInfo, config: WindowConfig, *, seed: int, shard: Shard) -> Iterator[GroupSlice]:
    """The endless sequence of groups of one worker, from the one with batch `start_batch` on; nothing is decoded.

    If the number of workers has changed, the present workers first share the batches that are left of all epochs that
    the earlier workers had begun. So each batch of an epoch is trained on once, whatever the numbers of workers were.
    """
    left: list[Part] = []
    epoch = 0
    for num_workers, had in shard.before:
        workers = [Shard(worker=worker, num_workers=num_workers) for worker in range(num_workers)]
        rests = [_after(_parts(dataset, config, seed, worker, left, epoch), had) for worker in workers]
        firsts = [next(rest) for rest in rests]
        begun = max(epoch - 1, *(part.epoch for part, _ in firsts))  # what was left may contain later epochs
        unfinished = [_until(begun, chain([first], rest)) for first, rest in zip(firsts, rests, strict=True)]
        left, epoch = sorted(chain(*unfinished), key=lambda pair: pair[0].epoch), begun + 1
    for part, _ in _after(_parts(dataset, config, seed, shard, left, epoch), shard.start_batch):
        yield part


def _parts(
    dataset: DatasetInfo,
    config: WindowConfig,
    seed: int,
    shard: Shard,
    left: Sequence[Part],
    first_epoch: int,
) -> Iterator[Part]:
    """A worker's endless groups and their numbers of batches: its share of `left`, then of whole epochs."""
    worker, num_workers = shard.worker, shard.num_workers
    yield from left[worker::num_workers]
    episodes, _ = split_episodes(dataset, config)
    group_size = min(config.group_size, max(1, len(episodes) // num_workers))
    for epoch in count(first_epoch):
        groups = epoch_groups(episodes, seed=seed, epoch=epoch, group_size=group_size)[worker::num_workers]
        counts = [num_batches(dataset, group, config) for group in groups]
        if sum(counts) == 0:
            if not num_windows(dataset.lengths[episodes], config):
                raise ConfigError(
                    f"{dataset.path}: its {len(episodes)} training episodes have no windows, because a goal image "
                    "must be at least one step ahead and no episode has two steps. Collect longer episodes "
                    "(--max-steps)."
                )
            raise ConfigError(
                f"{dataset.path}: {len(episodes)} training episodes in groups of {group_size} do not give worker "
                f"{worker} of {num_workers} a single batch of {config.batch_size} windows. Lower the batch size, use "
                "fewer workers or collect more episodes."
            )
        for group, num in zip(groups, counts, strict=True):
            yield GroupSlice(epoch=epoch, group=tuple(int(index) for index in group), first_batch=0), num


def _after(parts: Iterable[Part], skipped: int) -> Iterator[Part]:
    """The parts after the first `skipped` batches; groups without a batch are left out."""
    for part, num in parts:
        if skipped < num:
            yield replace(part, first_batch=part.first_batch + skipped), num - skipped
        skipped = max(0, skipped - num)


def _until(epoch: int, parts: Iterable[Part]) -> Iterator[Part]:
    """The parts up to the end of an epoch."""
    return takewhile(lambda pair: pair[0].epoch <= epoch, parts)


def require_batches(dataset: DatasetInfo, config: WindowConfig, *, num_workers: int) -> None:
    """Raise a ConfigError if a worker would get no batch; nothing is decoded."""
    for worker in range(num_workers):
        next(schedule(dataset, config, seed=0, shard=Shard(worker=worker, num_workers=num_workers)))


def iterate(dataset: DatasetInfo, config: WindowConfig, *, seed: int, shard: Shard = ALL) -> Iterator[Window]:
    """The endless sequence of training batches of one worker; in an epoch, the batches of workers are disjoint.

    Args:
        dataset: from `open_dataset`.
        config: settings of the windows.
        seed: seed of the run; each epoch is shuffled again.
        shard: the worker, and where it resumes; earlier groups are not decoded.

    Raises:
        ConfigError: the dataset is too small to give this worker a batch.
        DataError: see `group_batches`.
    """
    for part in schedule(dataset, config, seed=seed, shard=shard):
        yield from group_batches(dataset, part.group, config, seed=seed, epoch=part.epoch, first_batch=part.first_batch)
