"""Settings of jobs.label; those of jobs.pretrain are in tap_ray/settings.py."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Settings of jobs.label: the model, and the video."""

    policy: Path
    """Run folder of jobs.pretrain with --objective.inverse-dynamics."""
    data: Path
    """Dataset of the same robot, imported without actions; or one with actions, to measure the error of the predicted
    ones."""
    out: Path
    """Dataset to write; the same command again resumes, and labels new episodes of `data`."""
