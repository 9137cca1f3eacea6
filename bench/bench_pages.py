"""Measures what memory in pages of 2 MB gains: a training step of each stage, and play, with and without them.

    python -m bench.bench_pages

Each measurement is a process of its own, because malloc reads its settings when a process starts; the two settings take
turns. What is printed is the median of each and the median of the rounds' ratios.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import tyro

from tap_ray.distributed.connect import LARGE_PAGES


@dataclass(frozen=True, kw_only=True)
class Config:
    rounds: int = 5
    """Number of times that each setting is measured."""
    steps: int = 16
    """Training steps of a measurement, 64 windows each."""
    episodes: int = 16
    """Episodes of play of a measurement, 60 frames each."""
    measure: bool = False
    """Measure in this process, as its environment has it."""


def rates(config: Config) -> Iterator[tuple[str, float]]:
    """Windows/s of each stage, then frames/s of play."""
    import torch

    import envs
    from bench import profile_step
    from envs.kinematics.reachable import sample_poses
    from tap_ray.play.collect import CollectPlan, collect
    from tap_ray.training.loop import TrainConfig, fit
    from tap_ray.types import EnvConfig

    torch.set_num_threads(1)
    sizes = profile_step.Config(batch_size=64)
    batches = cycle([profile_step.window(sizes)])
    for name, (network, objective) in profile_step.stages(sizes).items():
        for steps in (2, config.steps):  # the first call warms up
            began = time.perf_counter()
            settings = TrainConfig(steps=steps, batch_size=64, log_every=steps, checkpoint_every=0, validate_every=0)
            fit(network, batches, objective, settings)
        yield f"{name}, windows/s", 64 * config.steps / (time.perf_counter() - began)
    plan = CollectPlan(env=EnvConfig(max_steps=60, robot_mask=True), explorer="contact")
    arms = envs.spec(plan.env).arms
    began = time.perf_counter()
    played = collect(plan, envs.make_ee_control, sample_poses, arms=arms, num_episodes=config.episodes, num_robots=4)
    yield "play, frames/s", sum(len(episode.action) for episode in played) / (time.perf_counter() - began)


def main(config: Config) -> None:
    """Both settings in turns."""
    if config.measure:
        for name, rate in rates(config):
            print(f"RATE\t{name}\t{rate}")
        return
    settings = {"pages of 4 kB": dict.fromkeys(LARGE_PAGES, ""), "of 2 MB": LARGE_PAGES}
    found: dict[str, dict[str, list[float]]] = {}
    command = [sys.executable, "-W", "ignore", "-m", "bench.bench_pages", "--measure"]
    command += ["--steps", str(config.steps), "--episodes", str(config.episodes)]
    for _ in range(config.rounds):
        for setting, variables in settings.items():
            ended = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
            for line in ended.stdout.splitlines():
                if line.startswith("RATE\t"):
                    _, name, rate = line.split("\t")
                    found.setdefault(name, {}).setdefault(setting, []).append(float(rate))
    for name, of in found.items():
        small, large = of.values()
        ratios = [b / a for a, b in zip(small, large, strict=True)]
        shown = ", ".join(f"{setting} {statistics.median(values):.0f}" for setting, values in of.items())
        print(f"{name}: {shown}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
