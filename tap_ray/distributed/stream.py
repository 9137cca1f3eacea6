"""Training windows through Ray Data: decoded by other processes, in the order of `dataset.schedule.iterate`.

    in training worker w:  schedule ---> numbers ----> map(decode) ---> iter_batches ---> Window ---> fit
                           its groups    a task a      all windows of   in order, views
                           in order      group         a group          into the object store

Decoders run on their trainer's node, within the resources that it has reserved. They read the dataset as it was when
the driver opened it; episodes that are added later are not used.

Each training worker runs a pipeline of its own over its own groups. One pipeline for all of them, split by
`streaming_split` as `ray.train.get_dataset_shard` does it, gives each block to the worker that asks first: the same
command would train on other sequences each time, and a resumed run could not continue at its position. In addition, a
pipeline in the worker's process ends with it, and a new worker starts one at the checkpoint's group.
"""

import dataclasses
import logging
import time
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Callable, Generator, Iterable, Iterator, Mapping, Sequence, TypeVar

import numpy as np
import ray
import ray.data
from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayTaskError

from tap_ray.dataset import action_chunks
from tap_ray.dataset.action_chunks import ActionChunkConfig, ActionChunks
from tap_ray.dataset.mixture import Mixture, joined
from tap_ray.dataset.reader import DatasetInfo, as_dataset
from tap_ray.dataset.schedule import GroupSlice, schedule
from tap_ray.dataset.windows import WindowConfig, group_batches
from tap_ray.distributed.ray_internals.data import ExecutionCallback
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.types import ALL, ActionChunkBatch, Shard, Window

GROUPS_PER_PIPELINE = 256
"""Number of groups in one pipeline; another pipeline follows. Ray Data plans all tasks before the first one starts, 1
ms each."""
CHUNK_BATCHES_PER_TASK = 32
"""Number of batches of action chunks that one task gathers, half a millisecond each."""
PAUSE_S = 0.01
"""Pause of Ray Data's executor between two scheduling steps, s."""
AHEAD_BATCHES = 8
"""Number of batches whose blocks are prefetched."""


def batches(
    data: DatasetInfo | Path,
    config: WindowConfig,
    *,
    seed: int,
    shard: Shard = ALL,
    num_data_workers: int = 1,
    memory_mb: int = 512,
) -> Generator[Window, None, None]:
    """`schedule.iterate`, decoded by tasks of the connected Ray.

    Args:
        data: the dataset, its path absolute; on a cluster on storage that all machines see.
        config: which windows.
        seed, shard: as for `schedule.iterate`.
        num_data_workers: processes that decode for this worker; no window depends on it.
        memory_mb: decoded windows that may wait for this worker in the object store, MB.

    Returns:
        Windows whose arrays are read-only views of the object store: valid while they are held, never to be changed.

    Raises:
        ConfigError: the dataset is too small, or batches of different sizes are asked for.
        DataError: the dataset is damaged.
    """
    if not config.drop_last:
        raise ConfigError("All batches of a stream must have the same size, so windows.drop_last must be true.")
    dataset = as_dataset(data)
    slices = schedule(dataset, config, seed=seed, shard=shard)
    shared = ray.put(dataset)
    while True:
        chosen = list(islice(slices, GROUPS_PER_PIPELINE))
        items = ray.data.from_items([{"id": number} for number in range(len(chosen))], override_num_blocks=len(chosen))
        plan = items.map_batches(
            partial(decode, shared=shared, config=config, seed=seed, slices=chosen),
            batch_size=None,
            compute=TaskPoolStrategy(size=num_data_workers),
            **decoder_placement(),
        )
        yield from windows_of(plan, config.batch_size, memory_mb)


def mixed_batches(
    mixture: Mixture,
    config: WindowConfig,
    *,
    seed: int,
    shard: Shard = ALL,
    num_data_workers: int = 1,
    memory_mb: int = 512,
) -> Generator[Window, None, None]:
    """The batches of a mixture; arguments as for `batches`. The number of decoders is per dataset, the memory for all
    datasets."""
    share = {"num_data_workers": num_data_workers, "memory_mb": max(1, memory_mb // len(mixture.sets))}
    streams = [
        batches(dataset, windows, seed=dataset_seed, shard=shard, **share)
        for dataset, windows, dataset_seed in zip(
            mixture.sets, mixture.windows(config), mixture.seeds(seed), strict=True
        )
    ]
    try:
        yield from map(joined, zip(*streams, strict=True))
    finally:
        for stream in streams:
            stream.close()


def with_play(
    demos: Callable[..., Iterator[Window]], play: Callable[..., Iterator[Window]], *, shard: Shard
) -> Iterator[Window]:
    """Add a batch of play to each batch of demonstrations."""
    for demo_window, play_window in zip(demos(shard=shard), play(shard=shard), strict=False):
        yield dataclasses.replace(demo_window, play=play_window)


def motion_batches(
    data: Sequence[DatasetInfo | Path],
    weights: Sequence[float],
    config: ActionChunkConfig,
    *,
    seed: int,
    shard: Shard = ALL,
    num_data_workers: int = 1,
    memory_mb: int = 512,
) -> Generator[ActionChunkBatch, None, None]:
    """`action_chunks.batch`, gathered by tasks of the connected Ray; arguments as for `batches`."""
    numbers = count(shard.start_batch, CHUNK_BATCHES_PER_TASK)
    shared = tuple(ray.put(as_dataset(dataset)) for dataset in data)
    while True:
        items = [{"first": number} for number in islice(numbers, GROUPS_PER_PIPELINE)]
        plan = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            partial(gather, shared=shared, weights=tuple(weights), config=config, seed=seed, shard=shard),
            batch_size=None,
            compute=TaskPoolStrategy(size=num_data_workers),
            **decoder_placement(),
        )
        yield from windows_of(plan, config.batch_size, memory_mb, kind=ActionChunkBatch)


def decoder_placement() -> dict[str, Any]:
    """Where decoders run: within the CPUs that their trainer has reserved. Otherwise trainers could reserve all CPUs
    and wait for their data forever.

    A machine that is about to be preempted accepts no new tasks; until then its trainer gets its data from any machine.
    """
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return {"num_cpus": 0, "label_selector": here, "fallback_strategy": [{"label_selector": {}}]}


def gather(
    rows: Any,
    *,
    shared: tuple[ray.ObjectRef, ...],
    weights: tuple[float, ...],
    config: ActionChunkConfig,
    seed: int,
    shard: Shard,
) -> Iterator[dict[str, np.ndarray]]:
    """One Ray task: gather some of a worker's batches of action chunks."""
    sets = [_chunks_of(reference, config) for reference in shared]
    for first in rows["first"]:
        for worker_batch in range(int(first), int(first) + CHUNK_BATCHES_PER_TASK):
            number = shard.num_before + worker_batch * shard.num_workers + shard.worker
            yield to_columns(action_chunks.batch(sets, weights, config, seed=seed, number=number))


@lru_cache(maxsize=16)
def _chunks_of(shared: ray.ObjectRef, config: ActionChunkConfig) -> ActionChunks:
    """Load a dataset's action chunks, once in each process."""
    return action_chunks.load(_fetched(shared), config)


Rows = TypeVar("Rows", Window, ActionChunkBatch)


def windows_of(plan: ray.data.Dataset, batch_size: int, memory_mb: int, kind: type[Rows] = Window) -> Iterator[Rows]:
    """Run a pipeline whose rows are windows (or action chunks), in order, and cut it into batches."""
    context = plan.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.custom_execution_callback_classes = [ThrottleExecutor]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources.for_limits(object_store_memory=memory_mb * 1e6),
    )
    rows: Iterable[Any] = plan.iterator().iter_batches(
        batch_size=batch_size, prefetch_batches=AHEAD_BATCHES, batch_format="numpy", drop_last=True
    )
    try:
        for columns in rows:
            yield from_columns(columns, kind)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, TapRayError) else error) from None


class ThrottleExecutor(ExecutionCallback):
    """Throttles Ray Data's scheduling loop to 100 Hz.

    The loop is a thread of the trainer's process. While finished windows wait for the trainer (always, when data are
    fast) it busy-waits: `ray.wait` returns at once for an output that back-pressure forbids to read. Without the
    throttle it held the interpreter for two thirds of the time, and training ran at half its speed
    (docs/results/log.md).
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called by the executor after each scheduling step."""
        time.sleep(PAUSE_S)


def decode(
    rows: Any, *, shared: ray.ObjectRef, config: WindowConfig, seed: int, slices: Sequence[GroupSlice]
) -> Iterator[dict[str, np.ndarray]]:
    """One Ray task: decode the windows of a group. `rows["id"]` is the index of its slice."""
    for number in rows["id"]:
        part = slices[int(number)]
        for window in group_batches(
            _fetched(shared), part.group, config, seed=seed, epoch=part.epoch, first_batch=part.first_batch
        ):
            yield to_columns(window)


@lru_cache(maxsize=16)
def _fetched(shared: ray.ObjectRef) -> DatasetInfo:
    """A dataset's metadata, fetched once in each process."""
    return ray.get(shared)


def to_columns(window: Window | ActionChunkBatch) -> dict[str, np.ndarray]:
    """A window's arrays as columns of N rows; arrays that are None are left out."""
    arrays = {field.name: getattr(window, field.name) for field in dataclasses.fields(window)}
    return {name: array for name, array in arrays.items() if array is not None}


def from_columns(columns: Mapping[str, Any], kind: type[Rows] = Window) -> Rows:
    """Inverse of `to_columns`."""
    arrays: dict[str, Any] = {field.name: columns.get(field.name) for field in dataclasses.fields(kind)}
    return kind(**arrays)
