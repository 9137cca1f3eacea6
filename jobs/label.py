"""Label video that has no actions: a run of inverse dynamics (jobs.pretrain) predicts them from pairs of images."""

from pathlib import Path

from tap_ray.job import run_job
from tap_ray.pretrain.labels import label
from tap_ray.pretrain.settings import LabelConfig


def main(config: LabelConfig) -> Path:
    """Label what is missing; returns the dataset with pseudo-labels."""
    return label(config)


if __name__ == "__main__":
    run_job(main, LabelConfig)
