"""Export a dataset as LeRobot v3.0 with video, or as v2.1 for openpi. Resumes where it was interrupted."""

from pathlib import Path

from tap_ray.exporting.export import export
from tap_ray.exporting.settings import ExportConfig
from tap_ray.job import run_job


def main(config: ExportConfig) -> Path:
    """Export what is missing; returns the folder."""
    return export(config)


if __name__ == "__main__":
    run_job(main, ExportConfig)
