"""The options of `python -m jobs.collect_play` and `python -m jobs.collect_demos`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterable, Sequence

from tap_ray.config import NodesConfig
from tap_ray.errors import ConfigError
from tap_ray.play.collect import CollectPlan
from tap_ray.play.demos import DemoPlan
from tap_ray.play.explorers import ExplorerConfig, choices
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import EnvConfig, RandomizeConfig


@dataclass(frozen=True, kw_only=True)
class RobotsConfig(NodesConfig):
    """Settings of collection that play and demonstrations have in common: the robots, their number, and the output
    folder."""

    seed: int = 0
    """Root of the seed tree."""
    robot: str = "widowx"
    """Robot to collect with."""
    sim: str = "pybullet"
    """Simulator."""
    env: str = ""
    """A foreign environment instead of --robot and --sim: its adapter's YAML file, module:name of an Adapter, or a
    Gymnasium id whose adapter is shipped (docs/how-to/environment.md)."""
    max_steps: int = 60
    """Control steps of an episode (5 per second)."""
    image_size: int = 96
    """Side of the camera images, px."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """The robot's cameras: "main" views the table, "wrist" is mounted on the end effector (with two arms "left_wrist"
    and "right_wrist"). Crops and masks are of the first one. With --env the adapter names them."""
    robot_mask: bool = True
    """Whether each frame has a mask of the robot (a small PNG); without masks no crops can be cut from the play."""
    jpeg_quality: int = 90
    """Quality of the stored JPEG images, 1 to 95."""
    fleets: int = 0
    """Number of processes that step robots; 0: one per CPU, or with GPUs as many as they suffice for."""
    robots_per_fleet: int = 1
    """Robots in a process, stepped in lockstep. Neither number changes the data."""
    gpus_per_fleet: float = 0.0
    """GPUs, or a share of one, that each of these processes reserves; 0: one if the simulator needs a GPU
    (maniskill_gpu), else none. In live play nothing is reserved with 0: trainers and robots share the GPUs."""
    writers: int = -1
    """Number of processes that write the dataset; 0: the job itself writes; -1: one per 32 fleets. It does not change
    the data."""
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
    """Settings of jobs.collect_play: the amount and kind of play, and the number of robots."""

    episodes: int = 500
    """Number of episodes in the dataset; a larger number adds episodes to an existing one."""
    explorer: str = "visual"
    """Explorer that moves the robots: uniform (independent noise), waypoint (Algorithm 1 of arXiv
    2607.02466), contact (objects, whose poses the simulator gives), visual (objects in the camera's image), curious
    (novelty), an explorer of an installed package, or mixed (a mixture by --explorers.mixed.*)."""
    round_episodes: int = 32
    """Episodes in a round of the novelty memory that curious robots share."""
    randomize: bool = False
    """Whether table, camera, light, distractors and initial joints are randomized in each episode (and recorded). On a
    real robot, change the tablecloth instead."""
    randomization: RandomizeConfig = field(default_factory=RandomizeConfig)
    """Ranges of the randomization with --randomize; 0 turns a part off. The variants used by evaluation are never
    drawn."""
    explorers: ExplorerConfig = field(default_factory=ExplorerConfig)
    """Constants of the explorers."""


def plan_of(config: PlayJobConfig, *, control_lag: float) -> CollectPlan:
    """The part of a config that the data depend on.

    Args:
        config: the options.
        control_lag: `envs.control_lag_of` its simulator; explorers must not mistake a slow end effector for a blocked
            one.

    Raises:
        ConfigError: ranges of the randomization are given without --randomize, or the explorer visual without masks.
    """
    if "visual" in choices(config.explorer, config.explorers) and not config.robot_mask:
        raise ConfigError(
            "The explorer visual needs the robot's mask, to tell the robot from objects. Omit --no-robot-mask, or use "
            "the explorer waypoint."
        )
    if not config.randomize and config.randomization != RandomizeConfig():
        raise ConfigError("--randomization.* has no effect without --randomize. Add --randomize, or omit these flags.")
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
    """Settings of jobs.collect_demos: the tasks, the number of demonstrations, and the number of robots."""

    episodes: int = 200
    """Number of successful episodes of each task (with tabletop_mixed: of each pair of tasks); a larger number adds
    episodes to an existing dataset."""
    suite: str = "tabletop"
    """Suite of tasks; "tabletop_mixed" adds the objects of another task to each scene."""
    tasks: tuple[str, ...] = ()
    """Tasks to demonstrate; if none is given, all tasks of the simulator."""
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
