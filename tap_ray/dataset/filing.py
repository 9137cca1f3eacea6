"""Assigns episodes to files and makes their rows and bytes, as work that any process can do.

End --place--> Place of the next episode        needs lengths and tasks only
episode + Place --filed--> its rows             the same in every process
FileWork + its episodes --write_file--> Written  a whole data file under a temporary name; `DatasetWriter.commit_files`
                                                 commits it
"""

import uuid
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Iterable, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from tap_ray.dataset import layout, tables
from tap_ray.dataset.commit import Temporary, write_temporary
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.recovery import open_parquet, read_parquet
from tap_ray.errors import DataError
from tap_ray.storage import read
from tap_ray.types import Episode


@dataclass(frozen=True, kw_only=True)
class Place:
    """The position of an episode in a dataset."""

    index: int
    """Index of the episode in the dataset."""
    file_number: int
    first_index: int
    """Global index of its first frame."""
    task_index: int
    """Row of its task in tasks.parquet."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a dataset: all that determines the place of the next episode."""

    file_number: int
    """Number of the file that is being filled."""
    in_file: int
    """Number of episodes in it."""
    num_episodes: int
    num_frames: int
    tasks: tuple[str, ...]
    """Tasks in the order of their first appearance."""

    def place(self, task: str) -> Place:
        """Place of the next episode."""
        task_index = self.tasks.index(task) if task in self.tasks else len(self.tasks)
        return Place(
            index=self.num_episodes,
            file_number=self.file_number,
            first_index=self.num_frames,
            task_index=task_index,
        )

    def after(self, task: str, steps: int, episodes_per_file: int) -> "End":
        """The end after one more episode with the given number of control steps."""
        full = self.in_file + 1 == episodes_per_file
        return End(
            file_number=self.file_number + full,
            in_file=0 if full else self.in_file + 1,
            num_episodes=self.num_episodes + 1,
            num_frames=self.num_frames + steps,
            tasks=self.tasks if task in self.tasks else (*self.tasks, task),
        )


class Filed(NamedTuple):
    """An episode as rows."""

    table: pa.Table
    """Rows of the data file, one per control step."""
    row: dict[str, Any]
    """Row of the episode table."""


def filed(episode: Episode, header: DatasetHeader, place: Place, schema: pa.Schema | None) -> Filed:
    """Make the rows of an episode at its place.

    Args:
        episode: the episode, with the index of the place.
        header: the dataset's.
        place: see `End`.
        schema: schema of the dataset's episode tables; None for the first episode.

    Raises:
        DataError: the episode does not fit the dataset.
    """
    check_episode(episode, header)
    if schema is not None:
        _check_meta(episode, schema)
    table = tables.data_table(episode, header, task_index=place.task_index, first_index=place.first_index)
    stats = tables.episode_stats(episode, table)
    return Filed(
        table, tables.episode_row(episode, stats, file_number=place.file_number, first_index=place.first_index)
    )


@dataclass(frozen=True, kw_only=True)
class FileWork:
    """A data file to be written."""

    number: int
    carried: int
    """Number of committed episodes at its beginning, which stay."""
    places: tuple[Place, ...]
    """Places of the episodes that follow them."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A data file under a temporary name."""

    number: int
    data: Temporary
    table: pa.Table
    """The rows of its episodes, including the carried ones, without the caller's progress."""


def write_file(
    path: Path, header: DatasetHeader, work: FileWork, episodes: Iterable[Episode], schema: pa.Schema | None
) -> Written:
    """Write a data file under a temporary name of its own.

    Args:
        path: the dataset, whose lock another process holds.
        header: the dataset's.
        work: the file to write.
        episodes: one for each of its places; their own index is ignored.
        schema: see `filed`; None for the first file of a new dataset.

    Raises:
        DataError: an episode does not fit the dataset.
        StorageError: the disk refused.
    """
    data: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    if work.carried:
        name = path / layout.episodes_file(work.number)
        rows = read_parquet(name, read(name)).to_pylist()[: work.carried]
        with open_parquet(path / layout.data_file(work.number)) as file:
            data = [file.read_row_group(group) for group in range(work.carried)]
    for episode, place in zip(episodes, work.places, strict=True):
        made = filed(replace(episode, index=place.index), header, place, schema)
        schema = schema or tables.episodes_schema(made.row)
        data.append(made.table)
        rows.append(made.row)
    assert schema is not None, "a file has an episode"
    name = f"{layout.data_file(work.number)}.{uuid.uuid4().hex[:8]}{layout.TEMP_SUFFIX}"
    written = write_temporary(path, name, tables.parquet_bytes(data))
    return Written(number=work.number, data=written, table=tables.episodes_table(rows, schema))


def check_episode(episode: Episode, header: DatasetHeader) -> None:
    """Raise an error unless the episode fits a dataset with this header.

    Raises:
        DataError: the message names the field, the expected and the given value.
    """
    steps, spec = len(episode), header.spec
    if steps == 0:
        raise DataError(f"Episode {episode.index} has no steps. Each episode needs at least one.")
    masks = None if episode.mask_png is None else len(episode.mask_png)
    expected: dict[str, tuple[Any, Any]] = {
        "image_jpeg": (len(episode.image_jpeg), steps),
        "extra_jpeg": ([len(files) for files in episode.extra_jpeg], [steps] * (len(spec.cameras) - 1)),
        "mask_png": (masks, steps if header.robot_mask else None),
        "state": (episode.state.shape, (steps, len(spec.state))),
        "action": (episode.action.shape, (steps, len(spec.action))),
        "contact": (episode.contact.shape, (steps if header.contact else 0,)),
        "object_pose": (episode.object_pose.shape, (steps, header.num_objects, 7)),
    }
    for name, (have, want) in expected.items():
        if have != want:
            raise DataError(
                f"Episode {episode.index}: {name} has length or shape {have}; the dataset's header expects {want}."
            )
    for files in (episode.image_jpeg, *episode.extra_jpeg):
        with Image.open(BytesIO(files[0])) as image:
            if (image.height, image.width) != header.image_size:
                raise DataError(
                    f"Episode {episode.index}: its images are {image.height} x {image.width} px, but the dataset's "
                    f"header says {header.image_size[0]} x {header.image_size[1]} (rows x columns). Use one image "
                    "size."
                )
    for name in ("state", "action", "object_pose"):
        if not np.isfinite(getattr(episode, name)).all():
            step = int(np.argwhere(~np.isfinite(getattr(episode, name)))[0, 0])
            raise DataError(
                f"Episode {episode.index}: {name} is NaN or infinite at step {step}. A dataset may contain finite "
                "numbers only. Check for a simulator that diverged, or a division by zero in an explorer."
            )
    for key, value in episode.meta.items():
        if not isinstance(value, (bool, int, float, str, np.generic)):
            raise DataError(
                f"Episode {episode.index}: meta[{key!r}] must be a scalar or a str; got a {type(value).__name__}."
            )


def _check_meta(episode: Episode, schema: pa.Schema) -> None:
    """Check that all episodes have the same keys and types of meta, which are columns of one table."""
    prefix = tables.META_PREFIX
    want = {name.removeprefix(prefix) for name in schema.names if name.startswith(prefix)}
    if set(episode.meta) != want:
        raise DataError(
            f"Episode {episode.index} has meta {sorted(episode.meta)}, but the first one has {sorted(want)}. Every "
            "episode of a dataset needs the same keys."
        )
    row = {f"{prefix}{key}": value for key, value in episode.meta.items()}
    have = tables.episodes_schema({name: tables.plain(value) for name, value in row.items()})
    for field in have:
        first = schema.field(field.name).type
        if field.type != first and not (pa.types.is_integer(field.type) and pa.types.is_floating(first)):
            key = field.name.removeprefix(prefix)
            raise DataError(
                f"Episode {episode.index}: meta[{key!r}] is {field.type}, but in the first episode it is {first}."
            )
