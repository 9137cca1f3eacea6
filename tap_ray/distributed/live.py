"""Provides live play: an endless stream of new training windows from the robots, without a dataset.

    in training worker w:  numbers ---> [ fleet | fleet ] ---> iter_batches ---> Window ---> fit
                           of groups     collect a group's     in order
                                         episodes and windows

A group is `windows.group_size` episodes; its attempts follow from its number, so the sequence is a pure function of the
plan like that of a dataset, and a resumed run continues with the group where its checkpoint stands. A group trains
once: robots are slower than a trainer, so the time it waits for data is large here.
"""

from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Callable, Generator, Iterator, Sequence

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy

from tap_ray.dataset.windows import WindowConfig, episode_batches, num_windows
from tap_ray.distributed import placement
from tap_ray.distributed.actor_pool import MAX_START_DEATHS
from tap_ray.distributed.collect import Player
from tap_ray.distributed.placement import Pool
from tap_ray.distributed.record import pool_of
from tap_ray.distributed.stream import GROUPS_PER_PIPELINE, to_columns, windows_of
from tap_ray.distributed.train import uses_gpus
from tap_ray.errors import ConfigError, DataError
from tap_ray.play.collect import CollectPlan
from tap_ray.play.settings import PlayJobConfig
from tap_ray.rng import generator
from tap_ray.settings import WorkersConfig
from tap_ray.specs import RobotSpec
from tap_ray.types import ALL, Episode, Shard, Window


@dataclass(frozen=True, kw_only=True)
class LivePlay:
    """Settings of live play for each training process."""

    plan: CollectPlan
    """What is collected. All episodes have `plan.env.max_steps` steps."""
    make_player: Callable[[], Player]
    """Builds a fleet's robots in its process; must pickle. Robots share no visits: explorers with a novelty memory
    begin each episode with an empty one."""
    spec: RobotSpec
    reserved: int
    """Number of reserved attempts: attempts 0 .. reserved - 1 are for validation and never trained on."""
    pool: Pool
    """Fleets for each training process; with 0 fleets, one for each CPU that the trainers leave, or a single one if it
    reserves GPUs."""


def play_of(
    config: PlayJobConfig, plan: CollectPlan, make_player: Callable[[], Player], spec: RobotSpec, *, gpu: bool
) -> LivePlay:
    """Live play by the robots that a job's flags name, without the episodes that are kept for validation; `gpu`:
    whether their simulator needs a GPU."""
    return LivePlay(
        plan=plan,
        make_player=make_player,
        spec=spec,
        reserved=2 * config.episodes,  # attempts that crashed have been replaced by the ones after them
        pool=pool_of(config, gpu=gpu),
    )


def require_gpus(play: LivePlay, workers: WorkersConfig) -> None:
    """Raise a ConfigError if trainers and robots could never have their GPUs at the same time, so that each would wait
    for the other. Ray is connected."""
    trainers = workers.gpus if uses_gpus(workers, placement.selector(workers.node_labels)) else 0.0
    robots = play.pool.gpus * max(1, play.pool.fleets)
    needed, there = workers.num_workers * (trainers + robots), sum(placement.of_nodes("GPU", {}))
    if robots and needed > there and not placement.grows():
        raise ConfigError(
            f"Live play needs {needed:g} GPUs, {trainers:g} for each of {workers.num_workers} trainers and {robots:g} "
            f"for its robots, and the Ray cluster has {there:g}. Let them share one (--gpus 0.5 "
            "--play.gpus-per-fleet 0.5 --play.fleets 1), or train on the CPU (--gpu off)."
        )


def batches(
    play: LivePlay,
    config: WindowConfig,
    *,
    seed: int,
    shard: Shard = ALL,
    memory_mb: int = 512,
) -> Generator[Window, None, None]:
    """Endless batches of windows of new play for one training worker, from `shard.start_batch` on.

    Raises:
        ConfigError: a group has less than one batch.
        DataError: the robots crash in every episode of a group.
    """
    lengths = np.full(config.group_size, play.plan.env.max_steps)
    per_group = num_windows(lengths, config) // config.batch_size
    if per_group == 0:
        raise ConfigError(
            f"{config.group_size} episodes of {play.plan.env.max_steps} steps do not give a single batch of "
            f"{config.batch_size} windows. Lower --batch-size or raise --windows.group-size."
        )
    label_selector, num_workers = placement.selector(play.pool.labels), shard.num_workers
    idle = 0 if play.pool.gpus else placement.num_fleets(label_selector) - num_workers
    fleets = play.pool.fleets or max(1, idle // num_workers)
    processes = num_workers * (1 + fleets)
    first_group, first_batch = divmod(shard.start_batch, per_group)
    begun = sum(workers * -(-had // per_group) for workers, had in shard.before)  # by others: never played again
    numbers = count(begun + shard.worker + first_group * num_workers, num_workers)
    while True:
        items = [{"group": number, "first_batch": 0} for number in islice(numbers, GROUPS_PER_PIPELINE)]
        items[0]["first_batch"], first_batch = first_batch, 0
        plan = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _LiveFleet,
            fn_constructor_kwargs={"play": play, "config": config, "seed": seed},
            batch_size=None,
            num_cpus=placement.share(processes, label_selector),
            num_gpus=play.pool.gpus or None,
            label_selector=label_selector or None,
            compute=ActorPoolStrategy(size=fleets),
        )
        # A machine may be lost while all fleets start on it.
        plan.context.max_consecutive_actor_init_deaths = MAX_START_DEATHS * fleets
        yield from windows_of(plan, config.batch_size, memory_mb)


class _LiveFleet:
    """A process of robots that turns numbers of groups into windows."""

    def __init__(self, play: LivePlay, config: WindowConfig, seed: int) -> None:
        self._play, self._config, self._seed = play, config, seed
        self._player = play.make_player()

    def __call__(self, rows: Any) -> Iterator[dict[str, np.ndarray]]:
        for group, first_batch in zip(rows["group"], rows["first_batch"], strict=True):
            yield from self._windows(int(group), int(first_batch))

    def _windows(self, group: int, first_batch: int) -> Iterator[dict[str, np.ndarray]]:
        size = self._config.group_size
        first = self._play.reserved + group * size
        episodes = played(self._player, range(first, first + size), self._play.pool.robots)
        rng = generator(self._seed, "live", "group", group)
        for window in episode_batches(episodes, self._config, spec=self._play.spec, rng=rng, first_batch=first_batch):
            yield to_columns(window)


def played(player: Player, attempts: Sequence[int], robots: int) -> list[Episode]:
    """One episode for each attempt; if a robot crashed, the episode of another attempt is used twice, so that the
    number of episodes stays the same.

    Raises:
        DataError: all of them crashed.
    """
    parts = [attempts[i : i + robots] for i in range(0, len(attempts), robots)]
    outcomes = [outcome for part in parts for outcome in player.run(part)]
    whole = [outcome.episode for outcome in outcomes if outcome.episode is not None]
    if not whole:
        raise DataError(f"All robots crashed in the attempts {attempts[0]} to {attempts[-1]}: {outcomes[0].reason}.")
    return [outcome.episode or whole[i % len(whole)] for i, outcome in enumerate(outcomes)]
