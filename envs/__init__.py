"""Every simulator of the project, behind one function: `make(config)`. See tap_ray/types.py for what it emits."""

import gymnasium as gym

from envs.experts import Bench, ExpertConfig, expert, random_policy
from envs.maniskill.tasks import THINGS, TWINS
from envs.robots import ROBOTS, robot, spec_of
from envs.scene.mixed import require_pair
from envs.scene.randomize import require_play
from envs.scene.scenarios import SCENARIOS, known_scenario
from envs.scene.tasks import PLAY, PUSH_M, TASKS, known_task
from tap_ray.errors import ConfigError, nearest
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig, Policy

VERSION = "3"
"""Of the scenes. Raise it with any change that could change an episode: old results are then another protocol's."""
MAX_TWIN_PX = 480
SIMULATORS = ("pybullet", "maniskill", "maniskill_gpu")


def make(config: EnvConfig, *, teleoperated: bool = False, render_size: int | None = None) -> gym.Env:
    """One simulated robot.

    Args:
        config: which robot, task and simulator.
        teleoperated: see `make_teleoperated`.
        render_size: side of what `env.render()` returns, px; None for the observation's. ManiSkill's gets no sharper.

    Raises:
        ConfigError: unknown task, robot, simulator or scenario; names the nearest.
    """
    check(config)
    match config.sim:
        case "pybullet":
            from envs.bullet.env import TabletopEnv  # the engine is loaded only where a robot is simulated

            return TabletopEnv(config, teleoperated=teleoperated, render_size=render_size)
        case _:
            from envs.maniskill.env import SimplerEnv

            return SimplerEnv(config, render_size=render_size)


def make_teleoperated(config: EnvConfig, num_robots: int) -> gym.vector.VectorEnv:
    """The robots of `make_vector`, whose actions move the hand (specs.EE_DELTA_ACTION) whatever their own actions are.

    That is how explorers and experts drive any robot; `info["action"]` says what it was in the robot's own actions.
    """
    return make_vector(config, num_robots, teleoperated=True)


def make_vector(config: EnvConfig, num_robots: int, *, teleoperated: bool = False) -> gym.vector.VectorEnv:
    """`num_robots` robots in one process, stepped in lockstep; all run exactly `max_steps`, none resets itself."""
    if num_robots < 1:
        raise ConfigError(f"A fleet has at least 1 robot, got {num_robots}.")
    check(config)
    if config.sim == "maniskill_gpu":
        from envs.maniskill.env import SimplerVectorEnv

        return SimplerVectorEnv(config, num_robots)
    return gym.vector.SyncVectorEnv(
        [lambda: make(config, teleoperated=teleoperated)] * num_robots, autoreset_mode=gym.vector.AutoresetMode.DISABLED
    )


def make_expert(config: EnvConfig, num_robots: int, expert_config: ExpertConfig | None = None) -> Policy:
    """The scripted expert of `config`'s task for `num_robots` robots; it reads privileged object poses from `info`.

    Raises:
        ConfigError: the task has no goal ("play") or is unknown.
    """
    bench = None
    if config.sim != "pybullet" and config.task in TWINS:
        bench = Bench(object=THINGS, carry_z_m=TWINS[config.task].carry_z_m, drop_in_m=0.02, lags=True)
    return expert(config.task, spec(config), num_robots, expert_config, bench)


def version_of(sim: str) -> str:
    """Version of a simulator's scenes; ManiSkill's files are part of it."""
    if sim == "pybullet":
        return VERSION
    from envs.maniskill.backend import assets_digest, require

    require(sim)
    return f"{VERSION}+{assets_digest()}"


def tasks_of(sim: str) -> tuple[str, ...]:
    """The tasks that a simulator has, "play" aside.

    Raises:
        ConfigError: there is no such simulator.
    """
    known_simulator(sim)
    return tuple(TASKS) if sim == "pybullet" else tuple(TWINS)


def pushed_m(task: str) -> tuple[float, float] | None:
    """How far `task` wants its object 0 pushed along x and y, m, base frame; None if it is grasped instead."""
    return (0.0, PUSH_M) if TASKS[task].goal == "push_left" else None


def movers(config: EnvConfig) -> dict[str, int]:
    """Of either task of a mixed scene the slot of what it moves; empty for other scenes."""
    if not config.partner:
        return {}
    return {config.task: 0, config.partner: len(TASKS[config.task].object)}


def known_simulator(name: str) -> str:
    """`name`, if it is one of SIMULATORS.

    Raises:
        ConfigError: it is not; names the nearest.
    """
    if name not in SIMULATORS:
        raise ConfigError(f"Unknown simulator {name!r}. {nearest(name, SIMULATORS)}")
    return name


def spec(config: EnvConfig) -> RobotSpec:
    """The interface of `config`'s robot, without starting a simulator."""
    return spec_of(robot(config.robot))


def num_hands(config: EnvConfig) -> int:
    """How many hands `config`'s robot has."""
    return len(robot(config.robot).arm)


def check(config: EnvConfig) -> None:
    """Raise unless `make(config)` will work.

    Raises:
        ConfigError: says which value is wrong and what it could be.
    """
    known_task(config.task)
    robot(config.robot)
    known_simulator(config.sim)
    if config.sim != "pybullet":
        if config.robot != "widowx":
            raise ConfigError(f"sim {config.sim!r} has the robot 'widowx' only; got {config.robot!r}.")
        if config.task not in (*TWINS, PLAY):
            raise ConfigError(f"sim {config.sim!r} has no task {config.task!r}; it has {', '.join(TWINS)}.")
        if config.image_size > MAX_TWIN_PX:
            raise ConfigError(f"SIMPLER's camera has {MAX_TWIN_PX} rows; got image_size {config.image_size}.")
        from envs.maniskill.backend import require

        require(config.sim)
    known_scenario(config.scenario)
    require_play(config)
    require_pair(config)
    for name in ("image_size", "max_steps"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, got {getattr(config, name)}.")


__all__ = [
    "PLAY",
    "ROBOTS",
    "SCENARIOS",
    "TASKS",
    "VERSION",
    "ExpertConfig",
    "check",
    "make",
    "make_expert",
    "make_teleoperated",
    "make_vector",
    "movers",
    "num_hands",
    "pushed_m",
    "random_policy",
    "spec",
    "tasks_of",
    "version_of",
]
