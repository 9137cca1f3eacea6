"""What the tests of the import share: a mapping without a file, and an import in this process, without Ray."""

from pathlib import Path
from typing import Any

import yaml

from tap_ray.config import from_dict
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.mapping import Mapping, spec_of
from tap_ray.importing.report import ranges
from tap_ray.importing.source import Source
from tap_ray.specs import RobotSpec


def mapping_of(values: dict[str, Any] | str) -> Mapping:
    return from_dict(Mapping, yaml.safe_load(values) if isinstance(values, str) else values)


def imported(source: Source, mapping: Mapping, out: Path, like: RobotSpec | None = None) -> DatasetInfo:
    """All episodes of a source, as jobs.import_dataset stores them."""
    numbers = range(source.num_episodes)
    spec = like or spec_of(mapping, ranges(mapping, source, numbers))
    size = (mapping.image_size, mapping.image_size)
    header = DatasetHeader(spec=spec, plan={"kind": "import"}, image_size=size, num_objects=0, contact=False)
    with DatasetWriter(out, header) as writer:
        for number in numbers:
            writer.append(
                episode_of(mapping, source, number, index=number, options=ConvertOptions(quality=90, like=like))
            )
    return open_dataset(out)
