"""Live play: the same windows as from a dataset of the same episodes, endless, resumable, and no crash loses one."""

import dataclasses
import threading
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.cloudpickle
import toy_player

from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import WindowConfig, episode_batches, group_batches
from tap_ray.distributed import live
from tap_ray.distributed.collect import Pool
from tap_ray.distributed.connect import connect
from tap_ray.errors import ConfigError, DataError
from tap_ray.play.collect import CollectPlan
from tap_ray.rng import generator
from tap_ray.types import EnvConfig, Shard, Window

CONFIG = WindowConfig(batch_size=4, group_size=3, k_max=2)
STEPS = 9
RESERVED = 2


def same(one: Window, other: Window) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Window)]
    return all(np.array_equal(a, b) for a, b in pairs)


def play(crashes: tuple[int, ...] = (), fleets: int = 1) -> live.LivePlay:
    return live.LivePlay(
        plan=CollectPlan(env=EnvConfig(max_steps=STEPS), explorer="mixed"),
        make_player=partial(toy_player.ToyPlayer, STEPS, crashes),
        spec=toy_player.SPEC,
        reserved=RESERVED,
        pool=Pool(fleets=fleets, robots=2),
    )


def test_windows_of_memory_are_those_of_the_disk(toy_dataset: Path):
    dataset = open_dataset(toy_dataset)
    group = np.array([4, 1, 7])
    episodes = [toy_player.episode(int(index), None) for index in group]
    rng = generator(0, "windows", "epoch", 2, "group", 4)
    config = replace(CONFIG, k_max=3)
    memory = episode_batches(episodes, config, spec=dataset.spec, rng=rng)
    disk = [
        replace(w, task_index=np.zeros_like(w.task_index))
        for w in group_batches(dataset, group, config, seed=0, epoch=2)
    ]
    assert all(same(a, b) for a, b in zip(memory, disk, strict=True))


def test_the_episode_of_a_crashed_robot_is_replaced():
    """Attempt 1 of 0 .. 3 crashes: the second of the whole ones (2) is used twice, and there are still four."""
    player = toy_player.ToyPlayer(STEPS, (1,))
    assert [episode.index for episode in live.played(player, range(4), 2)] == [0, 2, 2, 3]
    with pytest.raises(DataError, match="All robots crashed in the attempts 1 to 1: crashed"):
        live.played(player, [1], 2)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_fresh_play_in_the_order_of_its_groups(monkeypatch: pytest.MonkeyPatch):
    """Groups of 3 episodes of 9 steps have 3 * 8 // 4 = 6 batches; the reserved attempts never come.

    Streams are closed in the middle, and their threads must be gone before Ray is: see `connect`.
    """
    ray.cloudpickle.register_pickle_by_value(toy_player)
    late: list[str] = []
    shutdown = ray.shutdown

    def watched() -> None:
        late.extend(thread.name for thread in threading.enumerate() if thread.name.startswith(("iter_", "Streaming")))
        shutdown()

    monkeypatch.setattr(ray, "shutdown", watched)
    with connect(num_cpus=2):
        stream = live.batches(play(crashes=(6,)), CONFIG, seed=5)
        traveled = list(islice(stream, 15))
        stream.close()
        resumed = live.batches(play(crashes=(6,), fleets=2), CONFIG, seed=5, shard=Shard(start_batch=8))
        assert all(same(a, b) for a, b in zip(traveled[8:], resumed, strict=False))
        resumed.close()
    assert not late
    player = toy_player.ToyPlayer(STEPS, (6,))
    expected = []
    for group in range(3):
        first = RESERVED + 3 * group
        episodes = live.played(player, range(first, first + 3), 2)
        rng = generator(5, "live", "group", group)
        expected += list(episode_batches(episodes, CONFIG, spec=toy_player.SPEC, rng=rng))
    assert len(expected) == 18
    assert all(same(a, b) for a, b in zip(traveled, expected, strict=False))


def test_a_group_without_a_batch():
    with pytest.raises(
        ConfigError, match=r"3 episodes of 9 steps do not give a single batch of 64 windows\. Lower --batch-size"
    ):
        next(live.batches(play(), replace(CONFIG, batch_size=64), seed=0))
