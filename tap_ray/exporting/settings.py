"""The options of jobs.export_dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of jobs.export_dataset."""

    data: Path
    """Dataset of jobs.collect_play, jobs.collect_demos, jobs.import_dataset or jobs.label."""
    out: Path
    """New folder; the same command again resumes in it."""
    format: Literal["lerobot-v3.0", "lerobot-v2.1"] = "lerobot-v3.0"
    """"lerobot-v3.0": what lerobot reads today; "lerobot-v2.1": what openpi and lerobot 0.3 read."""
    video: bool = True
    """Images as H.264 video. Without it they stay JPEG files in Parquet, bit for bit (v2.1 only: our own datasets are
    LeRobot v3.0 with images already)."""
    crf: int = 18
    """Constant rate factor of x264: 0 (best quality) to 51."""
    pix_fmt: Literal["yuv444p", "yuv420p"] = "yuv444p"
    """"yuv444p" keeps color at full resolution, as our JPEG files do: small objects differ by it; "yuv420p" keeps it at
    half: every player shows it."""
    threads: int = 0
    """Number of files that are written at the same time; 0: the number of CPUs."""
