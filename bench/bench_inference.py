"""What sharing a policy costs or saves: an evaluation whose fleets hold copies, against fleets that share one process.

    python -m bench.bench_inference [--policy runs/tap] [--fleets 2] [--robots 8] [--cells 32] [--rounds 3]

Both run the same cells and take turns, in one run on one Ray. A time includes the start of fleets and policy.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

import envs
from bench.bench_serve import FULL_SIZE
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate
from tap_ray.evaluate import trained
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.protocol import Protocol
from tap_ray.evaluate.settings import InferenceConfig
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig
from tests.untrained import TASK, untrained_run


@dataclass(frozen=True, kw_only=True)
class Config:
    policy: Path | None = None
    """Run folder of jobs.align; without it one of the default size with fresh weights, which takes as long."""
    fleets: int = 2
    robots: int = 8
    cells: int = 32
    rounds: int = 3
    window_ms: float = 2.0
    """Of --inference.window-ms."""


def main(config: Config) -> None:
    ways = {
        "copies": InferenceConfig(),
        "shared, one fleet a pass": InferenceConfig(actors=1, window_ms=0.0),
        "shared": InferenceConfig(actors=1, window_ms=config.window_ms),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    policy_ms: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, connect():
        run = config.policy or untrained_run(Path(folder) / "tap", **FULL_SIZE)
        spec, size = trained.interface(run)
        protocol = Protocol(
            tasks=(TASK,), env_version="1", episodes=config.cells, image_size=size, robot=spec.robot, sim="pybullet"
        )
        for number in range(config.rounds):
            for name, inference in ways.items():
                out = Path(folder) / f"{name}-{number}"
                out.mkdir()
                began = time.perf_counter()
                episodes = evaluate(
                    protocol,
                    make_vector=envs.make_vector,
                    make_policy=trained.carried(str(run)),
                    make_failure_inputs=_failure_inputs,
                    folder=out,
                    config=FleetConfig(fleets=config.fleets, robots=config.robots, inference=inference),
                    progress=False,
                )
                took[name].append(time.perf_counter() - began)
                policy_ms[name].append(statistics.median(episode.policy_ms for episode in episodes))
    base = statistics.median(took["copies"])
    for name, seconds in took.items():
        middle, ms = statistics.median(seconds), statistics.median(policy_ms[name])
        each = ", ".join(f"{one:.1f}" for one in seconds)
        print(f"{name:26}{middle:7.1f} s ({each}){middle / base:7.2f} x{ms:9.1f} ms a step in the policy")


def _failure_inputs(scene: EnvConfig):
    spec: RobotSpec = envs.spec(scene)
    return failure_inputs_of(spec)


if __name__ == "__main__":
    main(tyro.cli(Config))
