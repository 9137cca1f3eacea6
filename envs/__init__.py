"""Makes every simulated robot of the project with one function: `make(config)`. tap_ray/types.py says what it
returns."""

from dataclasses import replace
from typing import Iterable

import gymnasium as gym

from envs import gym_ids
from envs.experts import EXPERTS, ExpertConfig, expert, random_policy
from envs.robots import ROBOTS, robot, spec_of
from envs.scene import VERSION
from envs.scene.mixed import require_pair
from envs.scene.randomize import require_play
from envs.scene.scenarios import SCENARIOS, known_scenario
from envs.scene.tasks import NUM_SLOTS, PLAY, PUSH_M, TASKS, known_task
from envs.simulator import SIMULATORS, simulator
from tap_ray.errors import ConfigError
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig, Policy


def make(config: EnvConfig, *, ee_control: bool = False, render_size: int | None = None) -> gym.Env:
    """Make one simulated robot.

    Args:
        config: which robot, task and simulator.
        ee_control: see `make_ee_control`.
        render_size: side of the image of `env.render()`, px; None for the observation's. ManiSkill's image gets no
            sharper.

    Raises:
        ConfigError: a task, robot, simulator or scenario is unknown; the message names the nearest.
    """
    check(config)
    return simulator(config.sim).make(config, ee_control=ee_control, render_size=render_size)


def make_ee_control(config: EnvConfig, num_robots: int) -> gym.vector.VectorEnv:
    """Make the robots of `make_vector` with actions that move the end effector (specs.EE_DELTA_ACTION), whatever the
    robot's own actions are.

    Explorers and experts use it to drive any robot; `info["action"]` is the action in the robot's own slots.
    """
    return make_vector(config, num_robots, ee_control=True)


def make_vector(config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
    """Make `num_robots` robots in one process, stepped in lockstep; episodes last exactly `max_steps` and are not reset
    automatically."""
    if num_robots < 1:
        raise ConfigError(f"A fleet needs at least 1 robot; got {num_robots}.")
    check(config)
    return simulator(config.sim).make_vector(config, num_robots, ee_control=ee_control)


def make_expert(config: EnvConfig, num_robots: int, expert_config: ExpertConfig | None = None) -> Policy:
    """The scripted expert of `config`'s task for `num_robots` robots; it reads privileged object poses from `info`.

    Raises:
        ConfigError: the task has no goal ("play") or is unknown.
    """
    if config.task in EXPERTS:
        return EXPERTS[config.task](config, num_robots)
    expert_scene = simulator(config.sim).expert_scene(config.task)
    return expert(config.task, spec(config), num_robots, expert_config, expert_scene)


def version_of(sim: str, robot: str = "", tasks: Iterable[str] = (), scenarios: Iterable[str] = ()) -> str:
    """Version of a simulator's scenes, and of the packages that simulator, robot, tasks and scenarios come from.

    Raises:
        ConfigError: there is no such simulator, or it cannot run here.
    """
    packages = {SIMULATORS.package(sim), ROBOTS.package(robot)}
    packages |= {*map(TASKS.package, tasks), *map(SCENARIOS.package, scenarios)}
    return "+".join([simulator(sim).version(), *sorted(package.replace(" ", "-") for package in packages if package)])


def tasks_of(sim: str) -> tuple[str, ...]:
    """The tasks of a simulator, without "play".

    Raises:
        ConfigError: there is no such simulator.
    """
    return simulator(sim).tasks


def suite_tasks(sim: str) -> tuple[str, ...]:
    """The tasks of a simulator that are evaluated and demonstrated by default: the built-in ones, whatever is
    installed.

    Raises:
        ConfigError: there is no such simulator.
    """
    return tuple(task for task in simulator(sim).tasks if task in TASKS.built_in)


def sims_of(suite: str, named: str = "") -> tuple[str, ...]:
    """The simulators in which an evaluation suite runs, the default one first.

    Args:
        suite: its name.
        named: the simulator that the user names; of the simulators of installed packages only this one is loaded.

    Raises:
        ConfigError: the package that provides `named` is broken.
    """
    ours = tuple(SIMULATORS.built_in)
    names = (*ours, named) if named in SIMULATORS and named not in ours else ours
    return tuple(name for name in names if suite in SIMULATORS[name].suites)


def control_lag_of(sim: str) -> float:
    """How far a simulator's end effector lags behind its command without obstacles, as a multiple of PyBullet's.

    Raises:
        ConfigError: there is no such simulator.
    """
    return simulator(sim).control_lag


def needs_gpu(sim: str) -> bool:
    """Whether each process of a simulator needs a GPU.

    Raises:
        ConfigError: there is no such simulator.
    """
    return getattr(simulator(sim), "gpu", False)


def push_goal_m(task: str) -> tuple[float, float] | None:
    """How far `task` requires its object 0 to be pushed along x and y, m, base frame; None if it is grasped instead."""
    return (0.0, PUSH_M) if TASKS[task].goal == "push_left" else None


def movers(config: EnvConfig) -> dict[str, int]:
    """Task of a mixed scene -> slot of the object that it moves; empty for other scenes."""
    if not config.partner:
        return {}
    return {config.task: 0, config.partner: len(TASKS[config.task].object)}


def spec(config: EnvConfig) -> RobotSpec:
    """The interface of `config`'s robot, without starting a simulator."""
    return replace(spec_of(robot(config.robot)), cameras=config.cameras)


def check(config: EnvConfig) -> None:
    """Raise an error unless `make(config)` will work.

    Raises:
        ConfigError: the message names the invalid value and the valid ones.
    """
    known_task(config.task)
    robot(config.robot)
    sim = simulator(config.sim)
    for kind, name, there in (("robot", config.robot, sim.robots), ("task", config.task, (*sim.tasks, PLAY))):
        if name not in there:
            raise ConfigError(f"sim {config.sim!r} has no {kind} {name!r}; it has {', '.join(there)}.")
    cameras = sim.cameras(config.robot)
    if config.cameras[:1] != cameras[:1] or not set(config.cameras) <= set(cameras):
        raise ConfigError(
            f"Robot {config.robot!r} in sim {config.sim!r} has the cameras {', '.join(cameras)}, and {cameras[0]} "
            f"must be the first one; got {', '.join(config.cameras) or 'none'}."
        )
    spec(config)  # without duplicates
    known_scenario(config.scenario)
    require_play(config)
    require_pair(config)
    for name in ("image_size", "max_steps"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1; got {getattr(config, name)}.")
    sim.check(config)


gym_ids.register((*TASKS, PLAY))

__all__ = [
    "NUM_SLOTS",
    "PLAY",
    "ROBOTS",
    "SCENARIOS",
    "SIMULATORS",
    "TASKS",
    "VERSION",
    "ExpertConfig",
    "check",
    "control_lag_of",
    "make",
    "make_ee_control",
    "make_expert",
    "make_vector",
    "movers",
    "needs_gpu",
    "push_goal_m",
    "random_policy",
    "sims_of",
    "spec",
    "suite_tasks",
    "tasks_of",
    "version_of",
]
