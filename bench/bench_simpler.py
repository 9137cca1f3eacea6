"""What our environment contract costs on SIMPLER's twins: episodes against ManiSkill's own bare loop on the same core.

    python -m bench.bench_simpler [--task put_carrot_on_plate] [--rounds 3]

The bare side resets to one of SIMPLER's states and steps, nothing else; it keeps its scene between episodes. Ours
does all that a fleet needs: a scene built anew (the same seed's bytes), the picture squared, proprioception, poses,
contacts. What counts is processor time, all threads together (the software renderer has several), so other load hardly
matters.
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
from envs.maniskill import load, require
from envs.twin_photo import PHOTO_PX
from envs.twins import NUM_STATES, TWINS
from tap_ray.errors import ConfigError
from tap_ray.types import EnvConfig

STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    task: str = "put_carrot_on_plate"
    """Which twin."""
    episodes: int = 3
    """Episodes of 60 steps in a round, on each side."""
    rounds: int = 3
    """Repetitions, the sides in turn."""
    image_size: int = 96
    """Side of the policy's picture, px."""


def actions() -> np.ndarray:
    """(STEPS, 7) the same motions on every side, inside both action spaces."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(-0.01, 0.01, (STEPS, 6)), rng.choice((-1.0, 1.0), (STEPS, 1))], axis=1)


def bare(task: str) -> Callable[[int], None]:
    """ManiSkill's loop: 640 x 480, pictures left where they are."""
    load()
    env: Any = gym.make(TWINS[task].env_id, obs_mode="rgb+segmentation", num_envs=1)

    def episode(state: int) -> None:
        env.reset(seed=0, options={"episode_id": torch.tensor([state])})
        for action in actions().astype(np.float32):
            env.step(torch.from_numpy(action)[None])

    return episode


def ours(task: str, image_size: int) -> Callable[[int], None]:
    """The same through `envs.make`."""
    env = envs.make(EnvConfig(task=task, sim="maniskill", image_size=image_size, max_steps=STEPS))

    def episode(state: int) -> None:
        env.reset(seed=state)
        for action in actions().astype(np.float32):
            env.step(action)

    return episode


def cpu_s(episode: Callable[[int], None], episodes: int, first: int) -> float:
    """Processor time of some episodes, s."""
    start = time.process_time()
    for number in range(first, first + episodes):
        episode(number % NUM_STATES)
    return time.process_time() - start


def main(config: Config) -> None:
    """Print processor time a step and ratios."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        require("maniskill")
    except ConfigError as error:
        print(f"not measured: {error}")
        return
    sides = {
        "ManiSkill's own loop": bare(config.task),
        f"ours, drawn at {2 * config.image_size} px": ours(config.task, config.image_size),
        "ours, drawn at 640 x 480": ours(config.task, PHOTO_PX[1]),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, config.rounds):  # the first is not counted: meshes and shaders are read
        for name, episode in sides.items():
            seconds = cpu_s(episode, config.episodes, config.episodes * max(number, 0))
            if number >= 0:
                taken[name].append(seconds)
    own = taken["ManiSkill's own loop"]
    for name, seconds in taken.items():
        ratios = [reference / mine for reference, mine in zip(own, seconds, strict=True)]
        ms = 1e3 * statistics.median(seconds) / (config.episodes * STEPS)
        print(f"{name:28}  {ms:6.1f} ms of a core a step  {statistics.median(ratios):5.2f} x as fast  "
              f"(rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config))
