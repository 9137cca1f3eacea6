"""Settings of jobs.cut_crops."""

from dataclasses import dataclass
from pathlib import Path

from tap_ray.config import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class CropsConfig(ClusterConfig):
    """Settings of the job: which dataset."""

    data: Path
    """Dataset of jobs.collect_play, with robot masks."""
