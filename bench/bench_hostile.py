"""Measures how much hostile clients slow robots down: a step's time with 80 of them against its time without, in one
run.

    python -m bench.bench_hostile [--clients 80] [--robots 4] [--no-ray]

Robots step at their own rate over a WebSocket on loopback; quiet and attacked rounds take turns. The clients are of
every kind in tests/serving/hostile.py, each as fast as the server lets it, in a process of lower priority: on other
machines they have their own processors. It exits with 1 if p99 is more than twice its quiet value, or the attack made a
step late, or the server is not ready afterwards.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
import tyro

from bench.bench_serve import FULL_SIZE, SENTENCE, frames, server
from tap_ray.models.inference import load_policy
from tap_ray.serving.client import RemotePolicy
from tests.serving.hostile import KINDS, attacked
from tests.serving.served import serving
from tests.untrained import untrained_run

WARM_UP = 5
"""Steps of each robot that do not count."""


@dataclass(frozen=True, kw_only=True)
class Config:
    clients: int = 80
    robots: int = 4
    steps: int = 100
    """Steps of each robot in each round."""
    rounds: int = 2
    """Number of rounds of each kind."""
    deadline_s: float | None = None
    """Deadline of a step, s, as in jobs.serve."""
    ray: bool = True
    """The networks on Ray Serve; --no-ray: in the server's own process."""


def drive(url: str, spec, size: int, config: Config) -> tuple[list[float], int]:
    """Milliseconds of each step of all robots, and how many steps were not answered in time."""
    rgb, state, action = frames(spec, size)
    took: list[float] = []
    late: list[str] = []

    def robot(seed: int) -> None:
        client = RemotePolicy(url, spec.to_json())
        client.reset(seed)
        next_at = time.monotonic() + seed / spec.control_hz / config.robots
        for step in range(WARM_UP + config.steps):
            time.sleep(max(0.0, next_at - time.monotonic()))
            next_at += 1 / spec.control_hz
            start = time.perf_counter()
            try:
                client.act(rgb, state, action, SENTENCE)
            except TimeoutError as error:
                late.append(str(error))
            if step >= WARM_UP:
                took.append(1e3 * (time.perf_counter() - start))
        client.socket.close()

    threads = [threading.Thread(target=robot, args=(seed,)) for seed in range(config.robots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, len(late)


@contextmanager
def served(run: Path, config: Config) -> Iterator[str]:
    """WebSocket address of a server."""
    if config.ray:
        flags = [] if config.deadline_s is None else ["--deadline-s", str(config.deadline_s)]
        with server(run, *flags) as url:
            yield url
    else:
        with serving(load_policy(run)[0], limit=64, image_size=FULL_SIZE["image_size"]) as local:
            yield local.socket


def main(config: Config) -> int:
    took: dict[str, list[float]] = {"quiet": [], "attacked": []}
    late = dict.fromkeys(took, 0)
    attacks: dict[str, int] = dict.fromkeys((kind.__name__ for kind in KINDS), 0)
    with tempfile.TemporaryDirectory() as folder:
        run = untrained_run(Path(folder) / "tap", **FULL_SIZE)
        spec = load_policy(run)[1]
        with served(run, config) as url:
            port = int(url.split(":")[2].split("/")[0])
            for _ in range(config.rounds):
                for name in took:
                    with attacked(port, config.clients) if name == "attacked" else nullcontext({}) as done:
                        ms, missed = drive(url, spec, FULL_SIZE["image_size"], config)
                    took[name] += ms
                    late[name] += missed
                    attacks = {kind: attacks[kind] + done.get(kind, 0) for kind in attacks}
            health = requests.get(f"http://127.0.0.1:{port}/health", timeout=30).json()
    print("attacks: " + ", ".join(f"{kind} {number}" for kind, number in attacks.items()))
    for name, ms in took.items():
        p50, p99 = np.percentile(ms, [50, 99])
        about = f"p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  max {max(ms):7.2f} ms  late {late[name]}"
        print(f"{name:10}{len(ms):6} steps  {about}")
    ratio = np.percentile(took["attacked"], 99) / np.percentile(took["quiet"], 99)
    print(f"p99 beside {config.clients} hostile clients / alone: {ratio:.2f}; afterwards {health}")
    return int(ratio > 2 or late["attacked"] > late["quiet"] or not health["ready"])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
