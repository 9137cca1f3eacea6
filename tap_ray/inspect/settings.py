"""Settings of the jobs that look inside: jobs.inspect_dataset, jobs.probe and jobs.saliency."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tap_ray.errors import ConfigError

Sign = Literal["abs", "positive"]


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Settings of jobs.inspect_dataset."""

    data: Path
    """Dataset of jobs.collect_play, jobs.collect_demos or jobs.import_dataset."""
    out: Path | None = None
    """Folder for the page and its numbers; without it `inspection/` in the dataset's folder."""
    episodes: int | None = None
    """Number of evenly spaced episodes whose numbers are read; None: all."""
    images: int = 3000
    """Largest number of images to check, in evenly spaced whole episodes; 0: all."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of jobs.probe: the policy, and the frames."""

    policy: Path
    """Run folder of jobs.pretrain or jobs.align."""
    data: Path
    """Dataset whose frames are probed (its privileged object poses are the targets)."""
    episodes: int = 200
    """Episodes to read; a quarter of them is the test set. 0: all."""
    every: int = 5
    """Take every N-th frame of an episode."""
    out: Path | None = None
    """Run folder; without it runs/probe-<hash>."""


@dataclass(frozen=True, kw_only=True)
class SaliencyConfig:
    """Settings of jobs.saliency."""

    policy: tuple[Path, ...]
    """Run folders of jobs.pretrain (Stage 1) and jobs.align (Stage 2). All see the same frames."""
    driver: Literal["auto", "policy", "expert"] = "auto"
    """What moves the robot: the only given policy (Stage 2), or the scripted expert; auto: the policy if possible."""
    cam: Sign = "abs"
    """"abs": maps of the evidence for and against the predicted motion; "positive": of the evidence for it only, as
    Grad-CAM does for a class (inspect/saliency.py)."""
    env: str = ""
    """A foreign environment instead of the suite, as in jobs.evaluate. It has no segmentation of gripper and objects:
    shares are those of the whole robot if its adapter has a robot_mask; otherwise there are images only."""
    suite: str = "tabletop"
    """Suite of tasks."""
    tasks: tuple[str, ...] = ()
    """Tasks; if none is given, all tasks of the suite."""
    episodes: int = 5
    """Episodes of each task: the first cells of jobs.evaluate."""
    max_steps: int = 60
    """Control steps of an episode (5 per second); it is analyzed until the task is done."""
    goal_offset: int = 1
    """Steps (0.2 s each) from a frame to the second image of inverse dynamics, at least 1."""
    every: int = 4
    """Steps (0.2 s each) between two images of a strip."""
    seed: int = 0
    """Root of the episodes' seeds."""
    out: Path | None = None
    """Run folder; without it runs/saliency-<hash>."""

    def __post_init__(self) -> None:
        if self.max_steps <= self.goal_offset:
            raise ConfigError(f"max_steps must be more than goal_offset, {self.goal_offset}; got {self.max_steps}.")
