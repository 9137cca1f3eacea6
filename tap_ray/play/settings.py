"""The options of `python -m jobs.collect_play` and `python -m jobs.collect_demos`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterable, Sequence

from tap_ray.config import NodesConfig
from tap_ray.errors import ConfigError
from tap_ray.play.collect import CollectPlan
from tap_ray.play.demos import DemoPlan
from tap_ray.play.explorers import ExplorerConfig
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import EnvConfig, RandomizeConfig


@dataclass(frozen=True, kw_only=True)
class RobotsConfig(NodesConfig):
    """Which robots, how many of them, and where to."""

    seed: int = 0
    """Root of the seed tree."""
    robot: str = "widowx"
    """Embodiment."""
    sim: str = "pybullet"
    """Simulator."""
    env: str = ""
    """Instead of both a foreign environment: its adapter's YAML file, module:name of an Adapter, or a Gymnasium id
    whose adapter is shipped (docs/how-to/environment.md)."""
    max_steps: int = 60
    """Control steps of an episode (5 a second)."""
    image_size: int = 96
    """Side of the camera images, px."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """The robot's cameras: "main" looks at the table, "wrist" sits on the hand (of two hands "left_wrist" and
    "right_wrist"). Crops and masks come from the first. With --env the adapter names them."""
    robot_mask: bool = True
    """Whether each frame carries the robot's own mask (a small PNG): without it no crops can be cut from the play."""
    jpeg_quality: int = 90
    """1 to 95."""
    fleets: int = 0
    """Processes of robots; 0: one for each CPU."""
    robots_per_fleet: int = 1
    """Robots in a process, stepped in lockstep. Neither number changes the data."""
    writers: int = -1
    """Processes that write the dataset; 0: the job's own; -1: one for each 32 fleets, none below. Same bytes."""
    out: Path | None = None
    """Dataset; without it data/play-<hash> or data/demos-<hash>."""

    @property
    def scene(self) -> EnvConfig:
        """The robots' environment, without a task."""
        return EnvConfig(
            robot=self.robot,
            sim=self.sim,
            max_steps=self.max_steps,
            image_size=self.image_size,
            cameras=self.cameras,
            robot_mask=self.robot_mask,
        )


@dataclass(frozen=True, kw_only=True)
class PlayJobConfig(RobotsConfig):
    """How much play of what kind, by how many robots."""

    episodes: int = 500
    """Episodes wanted in the dataset; a larger number makes an existing one longer."""
    explorer: str = "mixed"
    """What moves the robots: uniform (independent noise), waypoint (Algorithm 1), contact (objects), curious
    (novelty), an explorer of an installed package, or mixed (a mixture by --explorers.mixed.*)."""
    round_episodes: int = 32
    """Episodes in a round of the novelty memory that curious robots share."""
    randomize: bool = False
    """Whether each episode has another table, camera, light, distractors and initial joints, and records which.
    On a real robot: change the tablecloth while it plays."""
    randomization: RandomizeConfig = field(default_factory=RandomizeConfig)
    """How far they may differ with --randomize; 0 leaves that part as it is. Evaluation's own are never drawn."""
    explorers: ExplorerConfig = field(default_factory=ExplorerConfig)
    """Constants of the explorers."""


def plan_of(config: PlayJobConfig, *, control_lag: float) -> CollectPlan:
    """The part of a config that the data depend on.

    Args:
        config: the options.
        control_lag: `envs.control_lag_of` its simulator; explorers must not take a slow hand for one that is blocked.

    Raises:
        ConfigError: bounds of a randomization that is off.
    """
    if not config.randomize and config.randomization != RandomizeConfig():
        raise ConfigError("Bounds of the randomization do nothing without --randomize: add it, or leave them out.")
    motion = config.explorers.motion
    explorers = replace(config.explorers, motion=replace(motion, max_lag_m=control_lag * motion.max_lag_m))
    return CollectPlan(
        env=replace(config.scene, randomize=config.randomization if config.randomize else None),
        explorer=config.explorer,
        explorers=explorers,
        seed=config.seed,
        jpeg_quality=config.jpeg_quality,
        round_episodes=config.round_episodes,
    )


@dataclass(frozen=True, kw_only=True)
class DemosJobConfig(RobotsConfig):
    """How many demonstrations of which tasks, by how many robots."""

    episodes: int = 200
    """Successful episodes wanted of each task (mixed: beside each partner); a larger number makes an existing dataset
    longer."""
    suite: str = "tabletop"
    """"tabletop_mixed" puts another task's objects beside each task's own."""
    tasks: tuple[str, ...] = ()
    """Tasks to demonstrate; none given: all of the simulator."""
    success_hold_steps: int = 8
    """A demonstration ends when the task has been done for this many steps in a row."""


def demo_plan_of(config: DemosJobConfig, all_tasks: Iterable[str], pairs: Sequence[tuple[str, str]] = ()) -> DemoPlan:
    """The part of a config that the data depend on; `pairs`: tasks that share a table in the suite."""
    tasks = config.tasks or tuple(all_tasks)
    scenes = [
        (one, two) for task in tasks for pair in pairs if task in pair for one, two in (pair, pair[::-1]) if one == task
    ]
    return DemoPlan(
        tasks=tuple(task for task, _ in scenes) or tasks,
        partners=tuple(partner for _, partner in scenes),
        env=config.scene,
        seed=config.seed,
        jpeg_quality=config.jpeg_quality,
        success_hold_steps=config.success_hold_steps,
    )
