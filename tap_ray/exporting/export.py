"""Writes a dataset in another layout: several files at a time, each exactly once."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from tap_ray import runs, storage
from tap_ray.config import to_dict
from tap_ray.dataset import layout, tables
from tap_ray.dataset.layout import image_columns
from tap_ray.dataset.reader import DatasetInfo, open_dataset, read_columns, read_table
from tap_ray.dataset.recovery import committed_tables
from tap_ray.errors import ConfigError
from tap_ray.exporting import lerobot
from tap_ray.exporting.mapping import mapping_yaml
from tap_ray.exporting.settings import ExportConfig
from tap_ray.media.image import decode_jpeg
from tap_ray.media.video import write_h264
from tap_ray.progress_bar import progress_bar

MAPPING = "mapping.yaml"
"""Name of the mapping file with which jobs.import_dataset reads an export."""


def export(config: ExportConfig) -> Path:
    """Write what is missing; returns the folder.

    Raises:
        ConfigError: the dataset is already in that format, or the folder holds something else.
        DataError: an episode is damaged; what was written before is whole.
        StorageError: the disk refused.
    """
    if config.format == "lerobot-v3.0" and not config.video:
        raise ConfigError(
            f"{config.data} already is a LeRobot v3.0 dataset with images (examples/read_with_lerobot.py). Omit "
            "--no-video to export it with video, or use --format lerobot-v2.1."
        )
    dataset = open_dataset(config.data)
    _require_even(dataset, config)
    made_by = {key: value for key, value in to_dict(config).items() if key not in ("out", "threads")}
    with runs.entered(
        config.out, job="export_dataset", config=made_by, parents={"data": config.data}, job_config=config
    ) as run:
        if run.done:
            print(f"{run.path} has already been exported.")
            return run.path
        _write_all(dataset, run.path, config)
        runs.finish(run, episodes=len(dataset), frames=int(dataset.lengths.sum()))
    print(f"{len(dataset)} episodes, {int(dataset.lengths.sum())} frames were exported as {config.format}.")
    print(
        f"To import it again: python -m jobs.import_dataset --source {run.path} --mapping {run.path / MAPPING} --out "
        "..."
    )
    return run.path


def _write_all(dataset: DatasetInfo, out: Path, config: ExportConfig) -> None:
    """Write data and videos first, and the metadata that refer to them last."""
    if not storage.is_remote(out):
        storage.remove_leftovers(out, deep=True)
    found = committed_tables(dataset.path)
    if config.format == "lerobot-v3.0":
        make: Callable[[int], None] = lambda number: _file_v3(dataset, found[number], number, out, config)  # noqa: E731
        _each(make, range(len(found)), config, unit="file")
        storage.write_all({out / name: data for name, data in lerobot.meta_v3(dataset, config.pix_fmt).items()})
    else:
        _each(lambda index: _episode_v21(dataset, index, out, config), range(len(dataset)), config, unit="episode")
        derived = lerobot.meta_v21(dataset, found, config.pix_fmt if config.video else "")
        storage.make_folder(out / "meta")
        storage.write_all({out / name: data for name, data in derived.items()})
    storage.write(out / MAPPING, mapping_yaml(dataset))


def _each(make: Callable[[int], None], numbers: Sequence[int], config: ExportConfig, *, unit: str) -> None:
    """Call `make` for each in several threads: decoding and encoding release the GIL."""
    with ThreadPoolExecutor(config.threads or os.cpu_count() or 1) as pool:
        try:
            for _ in progress_bar(iterable=pool.map(make, numbers), total=len(numbers), unit=unit, desc=config.format):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _file_v3(dataset: DatasetInfo, table: pa.Table, number: int, out: Path, config: ExportConfig) -> None:
    """Write a data file, its video, and last its episode table, whose presence shows that the other two are
    complete."""
    if (out / layout.episodes_file(number)).exists():
        return
    indices = table["episode_index"].to_pylist()
    names = lerobot.columns(dataset.header, video=True)
    data = tables.parquet_bytes([read_table(dataset, index, names) for index in indices])
    _put(out / layout.data_file(number), data)
    for camera in image_columns(dataset.spec):
        images = (rgb for index in indices for rgb in _images(dataset, index, camera))
        _video(out / lerobot.video_file_v3(camera, number), images, dataset.spec.control_hz, config)
    episodes = lerobot.episodes_v3(table, number, dataset.header)
    _put(out / layout.episodes_file(number), tables.parquet_bytes([episodes]))


def _episode_v21(dataset: DatasetInfo, index: int, out: Path, config: ExportConfig) -> None:
    """Write an episode's video, and last its data, whose presence shows that the video is complete."""
    file = out / lerobot.data_file_v21(index)
    if file.exists():
        return
    for camera in image_columns(dataset.spec) if config.video else ():
        images = _images(dataset, index, camera)
        _video(out / lerobot.video_file_v21(camera, index), images, dataset.spec.control_hz, config)
    names = lerobot.columns(dataset.header, video=config.video)
    _put(file, tables.parquet_bytes([lerobot.described(read_table(dataset, index, names), dataset.header)]))


def _video(path: Path, images: Iterable[np.ndarray], hz: float, config: ExportConfig) -> None:
    key_every = lerobot.KEY_EVERY
    write_h264(path, images, fps=hz, crf=config.crf, key_every=key_every, pix_fmt=config.pix_fmt)


def _images(dataset: DatasetInfo, index: int, camera: str) -> Iterator[np.ndarray]:
    return map(decode_jpeg, read_columns(dataset, index, [camera])[camera])


def _put(path: Path, data: bytes) -> None:
    storage.make_folder(path.parent)
    storage.write(path, data)


def _require_even(dataset: DatasetInfo, config: ExportConfig) -> None:
    if config.video and any(side % 2 for side in dataset.header.image_size):
        raise ConfigError(
            f"Images of {dataset.path} are {dataset.header.image_size[1]} x {dataset.header.image_size[0]} px, but "
            "video needs even numbers. Export with --format lerobot-v2.1 --no-video."
        )
