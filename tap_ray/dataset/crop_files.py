"""Stores crops beside their dataset: a Parquet file for each block of episodes, a row for each bout of contact.

    <data>/crops/<hash of header and config>/episodes-000000-000063.parquet      a full block
                                      episodes-000064-000099.parquet      the last one, of 100 episodes
                                      episodes-000064-000127.parquet      what replaces it once there are 128

A file's name says which episodes it covers, and a file appears only when it is complete, so every existing file can be
used. A dataset that became longer gets new files; a partial block is read only while it is the dataset's last one.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tap_ray import storage
from tap_ray.cache import MAX_REQUESTS, cached
from tap_ray.config import digest
from tap_ray.dataset import layout
from tap_ray.dataset.crops import CropConfig, Crops, cut
from tap_ray.dataset.reader import DatasetInfo, read_episodes
from tap_ray.errors import DataError
from tap_ray.media.image import decode_jpeg, decode_mask
from tap_ray.types import Episode

BLOCK_EPISODES = 64
"""Number of episodes in a full block; 8 episodes have about 40 kB of crops."""
RULES = 3
"""Version of the algorithm that finds crops; each version has its own folder."""

SCHEMA = pa.schema([
    ("episode_index", pa.int64()),
    ("begin", pa.int64()),
    ("touch", pa.int64()),
    ("end", pa.int64()),
    ("object_png", pa.binary()),
    ("place_png", pa.binary()),
    ("object_px", pa.list_(pa.int64(), 2)),
    ("place_px", pa.list_(pa.int64(), 2)),
])  # fmt: skip
"""`begin`: the first frame that leads to the bout; `place_png` is null where there is no place."""


def folder(dataset: DatasetInfo, config: CropConfig) -> Path:
    """The folder of the dataset's crops for this config."""
    what = {"rules": RULES, "data": dataset.header.to_json()["hash"], **asdict(config)}
    shown_px = config.shown_px(dataset.header.image_size)
    if shown_px != config.size_px:  # crops of small images keep their folders
        what["shown_px"] = shown_px
    return dataset.path / "crops" / digest(what)[:8]


def blocks(dataset: DatasetInfo) -> list[tuple[int, int]]:
    """First and last episode of each block, in order."""
    total = len(dataset)
    return [(first, min(first + BLOCK_EPISODES, total) - 1) for first in range(0, total, BLOCK_EPISODES)]


def block_file(dataset: DatasetInfo, config: CropConfig, block: tuple[int, int]) -> Path:
    """The file of a block."""
    first, last = block
    return folder(dataset, config) / f"episodes-{first:06d}-{last:06d}.parquet"


def missing_blocks(dataset: DatasetInfo, config: CropConfig) -> list[tuple[int, int]]:
    """Blocks whose file is missing or damaged; a kill leaves no damaged files, but an incomplete copy may.

    Raises:
        DataError: the dataset has no masks or contact, so that its crops cannot be found.
    """
    require_masks(dataset)
    all_blocks = blocks(dataset)
    whole = _whole([block_file(dataset, config, block) for block in all_blocks])
    return [block for block, there in zip(all_blocks, whole, strict=True) if not there]


def require_masks(dataset: DatasetInfo) -> None:
    """Raise a DataError if the dataset has no robot masks or no contact."""
    if not dataset.header.contact:
        raise DataError(
            f"{dataset.path} has no finger contact (imported datasets have none), so there are no crops of the "
            "objects that are touched next. Train without crops. Stage 1: --objective.next-object 0 "
            "--objective.inverse-dynamics 1. Stage 2: omit --play of this dataset and --align.weights that need crops."
        )
    if not dataset.header.robot_mask:
        raise DataError(
            f"{dataset.path} has no robot masks, so changes of the scene cannot be distinguished from the robot's own "
            "motion. Collect it again: jobs.collect_play and jobs.collect_demos store masks by default. Without "
            "crops, Stage 1 can be trained on inverse dynamics: --objective.next-object 0 "
            "--objective.inverse-dynamics 1."
        )


def _whole(paths: Sequence[Path]) -> list[bool]:
    """Whether these files can be read; files of an object store are fetched all at once."""
    with ThreadPoolExecutor(min(MAX_REQUESTS, max(1, len(paths)))) as pool:
        return list(pool.map(_readable, paths))


def _readable(path: Path) -> bool:
    try:
        return len(_table(path)) >= 0
    except (FileNotFoundError, pa.ArrowException):
        return False


def cut_block(dataset: DatasetInfo, config: CropConfig, block: tuple[int, int]) -> Path:
    """Cut the crops of a block and write its file atomically.

    Raises:
        DataError: the dataset is damaged, or has no masks.
        StorageError: the storage refused.
    """
    require_masks(dataset)
    first, last = block
    rows: list[dict[str, Any]] = []
    columns = [layout.image_columns(dataset.spec)[0], layout.MASK, layout.CONTACT]
    for index, episode in enumerate(read_episodes(dataset, range(first, last + 1), columns), first):
        crops = cut_episode(episode, config)
        spans = zip(crops.begin_B, crops.touch_B, crops.end_B, strict=True)
        for bout, (begin, touch, end) in enumerate(spans):
            place = _png(crops.place_rgb[bout]) if crops.has_place[bout] else None
            images = {"object_png": _png(crops.object_rgb[bout]), "place_png": place}
            at = {"object_px": crops.object_px[bout].tolist(), "place_px": crops.place_px[bout].tolist()}
            rows.append({"episode_index": index, "begin": begin, "touch": touch, "end": end, **images, **at})
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), content, compression="none")
    path = block_file(dataset, config, block)
    storage.make_folder(path.parent)
    storage.write(path, content.getvalue())
    return path


def cut_episode(episode: Episode, config: CropConfig) -> Crops:
    """Apply `cut` to an episode with masks."""
    rgb = np.stack([decode_jpeg(data) for data in episode.image_jpeg])
    return cut_masked(rgb, episode.mask_png or (), episode.contact, config)


def cut_masked(rgb_TYX3: np.ndarray, mask_png: Sequence[bytes], contact_T: np.ndarray, config: CropConfig) -> Crops:
    """Apply `cut` with encoded masks."""
    mask = np.stack([decode_mask(data) for data in mask_png])
    return cut(rgb_TYX3, mask, contact_T, config)


def read_crops(dataset: DatasetInfo, episodes: Sequence[int] | np.ndarray, config: CropConfig) -> list[Crops]:
    """Read the crops of these episodes, in the form of `cut`.

    Raises:
        DataError: they have not been cut, or a file is damaged; the message contains the command that cuts them.
    """
    require_masks(dataset)
    if storage.is_remote(dataset.path):
        _whole([*{_file_of(dataset, int(index), config) for index in episodes}])
    return [_read(dataset, int(index), config) for index in episodes]


def _file_of(dataset: DatasetInfo, index: int, config: CropConfig) -> Path:
    first = index // BLOCK_EPISODES * BLOCK_EPISODES
    return block_file(dataset, config, (first, min(first + BLOCK_EPISODES, len(dataset)) - 1))


def _read(dataset: DatasetInfo, index: int, config: CropConfig) -> Crops:
    path = _file_of(dataset, index, config)
    try:
        table = _table(path)
    except FileNotFoundError:
        raise _not_cut(dataset, f"{path} is missing: the crops of episode {index} have not been cut") from None
    except pa.ArrowException as error:
        raise _not_cut(dataset, f"{path} is truncated or damaged ({' '.join(str(error).split())})") from None
    begin, end = np.searchsorted(table["episode_index"].to_numpy(), [index, index + 1])
    columns = table.slice(begin, end - begin).to_pydict()
    bout_T = np.full(int(dataset.lengths[index]), -1, np.int64)
    for bout, (start, stop) in enumerate(zip(columns["begin"], columns["end"], strict=True)):
        bout_T[start : stop + 1] = bout
    return Crops(
        object_rgb=_images(columns["object_png"], config),
        place_rgb=_images(columns["place_png"], config),
        has_place=np.array([data is not None for data in columns["place_png"]], bool),
        object_px=np.array(columns["object_px"], np.int64).reshape(-1, 2),
        place_px=np.array(columns["place_px"], np.int64).reshape(-1, 2),
        bout_T=bout_T,
        touch_B=np.array(columns["touch"], np.int64),
        end_B=np.array(columns["end"], np.int64),
    )


def _not_cut(dataset: DatasetInfo, what: str) -> DataError:
    return DataError(f"{what}. `python -m jobs.cut_crops --data {dataset.path}` cuts what is missing.")


def _table(path: Path) -> pa.Table:
    """The table of a block."""
    return read_rows(path, 0 if storage.is_remote(path) else path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def read_rows(path: Path, _mtime_ns: int) -> pa.Table:
    """The rows of a crop file, read once in each process and again if the file has changed."""
    return pq.read_table(cached(path), schema=SCHEMA)


def _images(files: Sequence[bytes | None], config: CropConfig) -> np.ndarray:
    images = np.zeros((len(files), config.size_px, config.size_px, 3), np.uint8)
    for image, data in zip(images, files, strict=True):
        if data is not None:
            image[:] = np.asarray(Image.open(io.BytesIO(data)))
    return images


def _png(rgb_YX3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb_YX3).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
