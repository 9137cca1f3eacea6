"""Measures the cost of our environment interface on SIMPLER's twins: episodes against ManiSkill's own plain loop on the
same core.

    python -m bench.bench_simpler [--task put_carrot_on_plate] [--rounds 3] [--sim maniskill_gpu --robots 256]

The bare side resets to one of SIMPLER's states and steps, nothing else; it keeps its scene between episodes. Ours
does all that a fleet needs: a scene built anew (the same seed's bytes), the image squared, proprioception, poses,
contacts. On a CPU what counts is processor time, all threads together (the software renderer has several), so other
load hardly matters; on a GPU, where N robots share one simulation, it is time on the clock.
"""

import statistics
import time
import warnings
from dataclasses import dataclass
from typing import Any, Callable

import gymnasium as gym
import numpy as np
import torch
import tyro

import envs
from envs.maniskill.backend import load, require
from envs.maniskill.background import PHOTO_PX
from envs.maniskill.tasks import MANISKILL_TASKS, NUM_STATES
from tap_ray.errors import ConfigError
from tap_ray.types import EnvConfig

STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    task: str = "put_carrot_on_plate"
    """Task of the digital twin."""
    episodes: int = 3
    """Episodes of 60 steps in a round, on each side."""
    rounds: int = 3
    """Repetitions, the sides in turn."""
    image_size: int = 96
    """Side of the policy's image, px."""
    sim: str = "maniskill"
    """"maniskill" (CPU) or "maniskill_gpu"."""
    robots: int = 1
    """Robots in the one simulation; more than one needs a GPU."""


def actions() -> np.ndarray:
    """(STEPS, 7) the same motions on every side, inside both action spaces."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(-0.01, 0.01, (STEPS, 6)), rng.choice((-1.0, 1.0), (STEPS, 1))], axis=1)


def bare(config: Config) -> Callable[[int], None]:
    """ManiSkill's loop: 640 x 480, images left where they are."""
    load()
    env: Any = gym.make(MANISKILL_TASKS[config.task].env_id, obs_mode="rgb+segmentation", num_envs=config.robots)
    device = env.unwrapped.device

    def episode(state: int) -> None:
        states = (torch.arange(config.robots) + state) % NUM_STATES
        env.reset(seed=0, options={"episode_id": states.to(device)})
        for action in actions().astype(np.float32):
            env.step(torch.from_numpy(action).to(device).expand(config.robots, -1))

    return episode


def ours(config: Config, image_size: int) -> Callable[[int], None]:
    """The same through `envs.make_vector`."""
    scene = EnvConfig(task=config.task, sim=config.sim, image_size=image_size, max_steps=STEPS)
    env: Any = envs.make_vector(scene, config.robots)  # takes a seed for each robot

    def episode(state: int) -> None:
        env.reset(seed=[(state + robot) % NUM_STATES for robot in range(config.robots)])
        for action in actions().astype(np.float32):
            env.step(np.tile(action, (config.robots, 1)))

    return episode


def taken_s(config: Config, episode: Callable[[int], None], first: int) -> float:
    """What some episodes take of a core, or of a GPU's time, s."""
    clock = time.process_time if config.sim == "maniskill" else time.perf_counter
    start = clock()
    for number in range(first, first + config.episodes):
        episode(number % NUM_STATES)
    if config.sim == "maniskill_gpu":
        torch.cuda.synchronize()  # ManiSkill's loop leaves images on the GPU
    return clock() - start


def main(config: Config) -> None:
    """Print the time a step takes, and ratios."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        require(gpu=config.sim == "maniskill_gpu")
    except ConfigError as error:
        print(f"not measured: {error}")
        return
    sides = {
        "ManiSkill's own loop": bare(config),
        f"ours, drawn at {2 * config.image_size} px": ours(config, config.image_size),
        "ours, drawn at 640 x 480": ours(config, PHOTO_PX[1]),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, config.rounds):  # the first is not counted: meshes and shaders are read
        for name, episode in sides.items():
            seconds = taken_s(config, episode, config.episodes * max(number, 0))
            if number >= 0:
                taken[name].append(seconds)
    reference = taken["ManiSkill's own loop"]
    for name, seconds in taken.items():
        ratios = [theirs / mine for theirs, mine in zip(reference, seconds, strict=True)]
        ms = 1e3 * statistics.median(seconds) / (config.episodes * STEPS * config.robots)
        print(f"{name:26}  {ms:8.3f} ms a robot's step  {1e3 / ms:8.0f} frames/s  {statistics.median(ratios):5.2f} x "
              f"as fast  (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config))
