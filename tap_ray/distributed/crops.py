"""Cuts the crops of a dataset with tasks of the connected Ray, one block of episodes per task."""

import logging
import pickle
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Sequence

import pyarrow as pa
import ray.data

from tap_ray.dataset.crop_files import cut_block, missing_blocks
from tap_ray.dataset.crops import CROPS, CropConfig
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.distributed.connect import connect
from tap_ray.errors import TapRayError
from tap_ray.progress_bar import progress_bar


def cut_missing(datasets: Sequence[DatasetInfo], ray_address: str | None = None) -> None:
    """Cut the crops of training windows that datasets lack; connects to Ray once, and only if one lacks any.

    Args:
        datasets: their paths absolute; on a cluster on storage that all machines see.
        ray_address: see `connect`.

    Raises:
        DataError: a dataset has no masks, or is damaged.
        StorageError: the storage refused.
    """
    lacking = [dataset for dataset in datasets if missing_blocks(dataset, CROPS)]
    with connect(ray_address) if lacking else nullcontext():
        for dataset in lacking:
            cut_all(dataset, CROPS)


def cut_all(dataset: DatasetInfo, config: CropConfig, *, progress: bool = True) -> int:
    """Cut the missing blocks. Each is stored as soon as it is cut, so the same call resumes after a kill.

    Args:
        dataset: on a cluster on storage that all machines see.
        config: sizes and thresholds.
        progress: whether to draw a bar.

    Returns:
        Number of episodes that were cut in this call.

    Raises:
        DataError: the dataset has no masks, or is damaged.
        StorageError: the storage refused.
    """
    missing = missing_blocks(dataset, config)
    if not missing:
        return 0
    lengths, done = dataset.lengths, 0
    items = [{"first": first, "last": last} for first, last in missing]
    plan = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_cut, path=dataset.path, config=config), batch_size=None, batch_format="pyarrow"
    )
    plan.context.enable_progress_bars = False
    plan.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    total = int(sum(lengths[first : last + 1].sum() for first, last in missing))
    with progress_bar(total=total, unit="frame", desc="crops", disable=not progress) as bar:
        for row in plan.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            bar.update(int(lengths[row["first"] : row["last"] + 1].sum()))
            done += int(row["last"] - row["first"] + 1)
    return done


def _cut(rows: pa.Table, *, path: Path, config: CropConfig) -> pa.Table:
    """One Ray task: cut a block and return its episode numbers once its file is stored.

    A TapRayError is returned as a value, because Ray Data would wrap it and print its own traceback.
    """
    [block], error = rows.to_pylist(), b""
    try:
        cut_block(_open(path), config, (block["first"], block["last"]))
    except TapRayError as raised:
        error = pickle.dumps(raised)
    return rows.append_column("error", pa.array([error], pa.binary()))


@lru_cache(maxsize=2)
def _open(path: Path) -> DatasetInfo:
    """Open a dataset; its metadata are read once in each process."""
    return open_dataset(path)
