"""Convert recordings of another format into a dataset: LeRobot v2.1 or v3.0, ManiSkill (HDF5), or RLDS
(TFRecords).

Begin with --dry-run: it converts a few episodes, shows them in a table and an image, and says what looks wrong.
"""

from pathlib import Path

from tap_ray.distributed.import_dataset import convert, preview, require_right
from tap_ray.importing.settings import ImportConfig
from tap_ray.job import run_job


def main(config: ImportConfig) -> Path:
    """Import what is missing; returns the dataset's folder, or with --dry-run the source's."""
    require_right(preview(config), config.accept)
    if config.dry_run:
        print("The checks found nothing wrong. Run the same command without --dry-run to import.")
        return config.source
    return convert(config)


if __name__ == "__main__":
    run_job(main, ImportConfig)
