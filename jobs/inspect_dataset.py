"""Inspect a dataset before training on it: a page with the result of each check, its numbers, and images.

It takes any dataset of tap_ray: play, demonstrations, imports. The results are advice; they do not
change the exit status.
"""

from pathlib import Path

from tap_ray.inspect.dataset import report
from tap_ray.inspect.settings import InspectConfig
from tap_ray.job import run_job


def main(config: InspectConfig) -> Path:
    """Inspect the dataset and print the results; returns the page."""
    return report.inspect(config)


if __name__ == "__main__":
    run_job(main, InspectConfig)
