"""The options of jobs.import_dataset, and how its source is opened."""

from dataclasses import dataclass
from pathlib import Path

from tap_ray import config as configs
from tap_ray import storage
from tap_ray.dataset import layout
from tap_ray.errors import ConfigError, DataError, nearest
from tap_ray.importing.hdf5 import Hdf5Source
from tap_ray.importing.lerobot import LeRobotSource
from tap_ray.importing.mapping import Mapping
from tap_ray.importing.rlds import RldsSource
from tap_ray.importing.source import Source
from tap_ray.specs import RobotSpec

SHIPPED = Path(__file__).parent / "mappings"
"""Names of the mappings that tap_ray includes."""
PLACES = (".", "examples/mappings")
"""If a --mapping file does not exist and lies in one of these folders, the included mapping of that name is used: a
bare name, or the folder where they were before."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig(configs.ClusterConfig):
    """Settings of jobs.import_dataset."""

    source: Path
    """Folder of a LeRobotDataset v2.1 or v3.0, folder of an RLDS dataset (TFRecord), a trajectory file (.h5) of
    ManiSkill, or a file (or a folder of files) in robomimic's layout (.hdf5), as LIBERO's."""
    mapping: Path
    """YAML or JSON: what its columns mean, see docs/import.md; or the name of one that tap_ray includes: bridge, droid,
    libero, libero_lerobot, libero_hdf5, so100, maniskill_panda."""
    out: Path
    """Folder of the dataset to make."""
    dry_run: bool = False
    """Convert only a few episodes, show them with an image beside --out, and report what seems to be wrong."""
    split: str = ""
    """Which split of an RLDS dataset; "": "train", or its only one. The other formats have none."""
    like: Path | None = None
    """Dataset, or run folder of a policy, of the same robot: its slots, in its order and with its ranges, become those
    of the new dataset, so that both can be trained on together, and evaluated in the same environment. Actions beyond
    its ranges are clipped."""
    accept: bool = False
    """Import even if the checks find something that seems to be wrong."""
    episodes: int | None = None
    """Number of episodes of the source to import, from the first on; None: all."""
    omit: tuple[int, ...] = ()
    """Episodes of the source to omit, counted from 0."""
    jpeg_quality: int = 90
    """Quality of the stored JPEG images, 1 to 95. JPEG images of the source that have the right size already are kept
    as they are."""
    fleets: int = 0
    """Number of processes that convert; 0: the number of CPUs."""


def open_source(source: Path, split: str = "") -> Source:
    """Open a dataset of another format.

    Raises:
        DataError: it has none of the supported formats, or is damaged.
        ConfigError: it has no such split.
    """
    if (source / "features.json").exists() or any(source.glob("*/features.json")):
        return RldsSource(source, split)
    if split:
        raise ConfigError(f"--split {split}: {source} is not an RLDS dataset and has no splits. Omit --split.")
    is_hdf5 = source.suffix in (".h5", ".hdf5") or any(source.glob("*.hdf5"))
    return Hdf5Source(source) if is_hdf5 else LeRobotSource(source)


def read_mapping(file: Path) -> Mapping:
    """Read the mapping, which says what a dataset's columns mean.

    Raises:
        ConfigError: the file is missing or invalid; the message names the invalid part.
    """
    shipped = {each.stem: each for each in SHIPPED.glob("*.yaml")}
    if file.exists() or str(file.parent) not in PLACES:
        return configs.load(Mapping, file)
    if file.stem not in shipped:
        raise ConfigError(
            f"There is no file {file}, and tap_ray includes no mapping of that name. {nearest(file.stem, shipped)}"
        )
    return configs.load(Mapping, shipped[file.stem])


def spec_like(config: ImportConfig) -> RobotSpec | None:
    """The conventions of the robot given by --like; None without it.

    Raises:
        DataError: there are no conventions at that path.
    """
    if config.like is None:
        return None
    here = storage.to_path(config.like)
    for name, part in ((layout.HEADER, "spec"), ("spec.json", ""), ("final/spec.json", "")):
        if (file := here / name).exists():
            values = layout.read_json(file)
            return RobotSpec.from_json(values[part] if part else values, where=str(file))
    raise DataError(
        f"--like {config.like}: expected a dataset of tap_ray (with meta/tap_ray.json) or a run folder (with "
        "final/spec.json)."
    )


def chosen(config: ImportConfig, source: Source) -> list[int]:
    """Indices of the source's episodes to import."""
    if config.episodes and config.episodes > source.num_episodes:
        raise ConfigError(
            f"--episodes {config.episodes}: the source has only {source.num_episodes}. Omit --episodes to import all."
        )
    if wrong := [number for number in config.omit if not 0 <= number < source.num_episodes]:
        raise ConfigError(f"--omit {wrong[0]}: the source has the episodes 0 .. {source.num_episodes - 1}.")
    first = range(config.episodes or source.num_episodes)
    kept = [number for number in first if number not in config.omit]
    if not kept:
        raise ConfigError("--omit omits all episodes. Keep at least one.")
    return kept
