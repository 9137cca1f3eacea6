"""Imports on Ray: processes convert episodes of the source, and the driver writes them in order, exactly once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tap_ray import storage
from tap_ray.config import digest, to_dict
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.distributed.placement import Pool
from tap_ray.distributed.record import Recording, record
from tap_ray.errors import DataError
from tap_ray.importing import checks, report
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.mapping import Mapping, require_fits, require_like, spec_of
from tap_ray.importing.settings import ImportConfig, chosen, open_source, read_mapping, spec_like
from tap_ray.importing.source import Source
from tap_ray.play.collect import AttemptResult
from tap_ray.progress_bar import progress_bar
from tap_ray.specs import RobotSpec

CHECKED_EPISODES = 20
"""Number of episodes whose values a dry run checks."""
DRAWN_EPISODES = 3
"""Number of episodes in the image of a dry run."""


class Converter:
    """A process that converts; an attempt is an episode of the source."""

    def __init__(self, source: Source, mapping: Mapping, numbers: Sequence[int], options: ConvertOptions) -> None:
        self._source, self._mapping, self._numbers, self._options = source, mapping, numbers, options

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """See `collect.Player`."""
        return [AttemptResult(attempt=attempt, episode=self._episode(attempt)) for attempt in attempts]

    def _episode(self, attempt: int):
        number = self._numbers[attempt]
        return episode_of(self._mapping, self._source, number, index=attempt, options=self._options)


def _inputs(config: ImportConfig) -> tuple[Source, Mapping, list[int], RobotSpec | None]:
    """The source, its mapping, the indices of the episodes to import, and the robot of --like."""
    source, mapping = open_source(config.source, config.split), read_mapping(config.mapping)
    require_fits(mapping, source)
    if (like := spec_like(config)) is not None:
        require_like(mapping, like)
    return source, mapping, chosen(config, source), like


def preview(config: ImportConfig) -> list[str]:
    """Convert a few episodes, print and draw them next to --out; returns what looks wrong.

    Raises:
        TapRayError: the mapping does not fit the source, or the source is damaged.
    """
    source, mapping, numbers, like = _inputs(config)
    some = numbers[:: max(1, len(numbers) // CHECKED_EPISODES)][:CHECKED_EPISODES]
    print(report.describe(mapping, source, some, like))
    drawn = config.out.with_name(config.out.name + ".dry_run.png")
    report.draw_figure(mapping, source, some[:DRAWN_EPISODES], drawn)
    print(f"\nframes and actions: {drawn}")
    return checks.findings(mapping, source, some, like)


def convert(config: ImportConfig) -> Path:
    """Convert what is missing; returns the dataset's folder.

    Raises:
        TapRayError: an episode is damaged, or the disk refused; what was written before is whole.
    """
    source, mapping, numbers, like = _inputs(config)
    options = ConvertOptions(quality=config.jpeg_quality, like=like)
    found = report.ranges(mapping, source, progress_bar(iterable=numbers, unit="episode", desc="ranges"))
    plan = {
        "kind": "import",
        "mapping": mapping.to_json(),
        "source": digest(
            [
                *(source.num_episodes, source.fps, sorted(source.columns), {k: list(v) for k, v in found.items()}),
                _pixels(mapping, source, numbers),
            ]
        ),
        "episodes": numbers,
        "jpeg_quality": config.jpeg_quality,
    }
    size = (mapping.image_size, mapping.image_size)
    header = DatasetHeader(
        spec=like or spec_of(mapping, found), plan=plan, image_size=size, num_objects=0, contact=False
    )
    where = config.source.resolve()

    def make(memory: object) -> Converter:
        return Converter(open_source(where, config.split), mapping, numbers, options)

    recording = Recording(
        job="import_dataset", header=header, out=storage.to_path(config.out), tasks=("import",), episodes=len(numbers),
        make_player=make,
    )  # fmt: skip
    values = to_dict(config) | {"mapping": mapping.to_json()}
    return record(recording, values, pool=Pool(fleets=config.fleets, robots=4), ray_address=config.ray_address)


def _pixels(mapping: Mapping, source: Source, numbers: Sequence[int]) -> str:
    """A digest of the first image of the first and of the last episode: two recordings can have the same motion."""
    images = [
        source.images(number, camera, [0])[0]
        for camera in mapping.camera_of.values()
        for number in (numbers[0], numbers[-1])
    ]
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def require_right(wrong: Sequence[str], accept: bool) -> None:
    """Raise a DataError for what looks wrong, unless the user accepts it (--accept)."""
    text = "\n".join(f"  - {each}" for each in wrong)
    if wrong and not accept:
        raise DataError(f"The mapping seems to be wrong:\n{text}\nCorrect it, or add --accept if it is right.")
    if wrong:
        print(f"Imported despite these findings (--accept):\n{text}")
