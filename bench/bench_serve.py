"""Measures the cost of serving: the time of a step through `python -m jobs.serve` against the same policy in this
process.

    python -m bench.bench_serve [--policy runs/tap] [--robots 1 4] [--steps 300]

One client thread a robot, each sending its next step as soon as the last one is answered, over a WebSocket on loopback.
A step is a look (the network works) or the rest of a chunk (it does not), as in a real episode; p50 and p99 are over
all steps of all robots. In process, one robot steps a bare loop. Both take turns, in one run.
"""

import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from tap_ray.models.inference import load_policy
from tap_ray.serving.client import RemotePolicy
from tap_ray.specs import RobotSpec
from tests.untrained import untrained_run

WARM_UP = 20
"""Steps of each robot that do not count."""
FULL_SIZE = {"image_size": 96, "map_width": 64, "num_keypoints": 32, "glimpse_px": 32, "head_width": 256}
SENTENCE = "put the carrot on the plate"


@dataclass(frozen=True, kw_only=True)
class Config:
    policy: Path | None = None
    """Run folder of jobs.align; without it one of the default size with fresh weights, which takes as long."""
    robots: tuple[int, ...] = (1, 4)
    """Numbers of robots that send steps at the same time."""
    steps: int = 300
    """Steps of each robot."""
    rounds: int = 2


@contextmanager
def server(run: Path, *flags: str) -> Iterator[str]:
    """A policy served on loopback; its WebSocket address."""
    command = [sys.executable, "-m", "jobs.serve", "--policy", str(run), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"ws://\S+/ws", line):
                yield found[0]
                return
        raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def frames(spec: RobotSpec, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 255, (size, size, 3), np.uint8),
        np.zeros(len(spec.state), np.float32),
        np.zeros(len(spec.action), np.float32),
    )


def in_process(run: Path, size: int, steps: int) -> list[float]:
    """Milliseconds of each step."""
    policy, spec = load_policy(run)
    rgb, state, action = frames(spec, size)
    obs = {"rgb": rgb[None], "state": state[None]}
    info = {"instruction": np.array([SENTENCE]), "action": action[None]}
    policy.reset(obs, info, [0])
    return timed(lambda: policy.act(obs, info), steps)


def timed(act, steps: int) -> list[float]:
    took = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        act()
        took.append(1e3 * (time.perf_counter() - start))
    return took[WARM_UP:]


def remote(url: str, run: Path, size: int, robots: int, steps: int) -> tuple[list[float], float]:
    """Milliseconds of each step of each robot, and steps a second of all of them together."""
    spec = load_policy(run)[1]
    rgb, state, action = frames(spec, size)
    took: list[list[float]] = [[] for _ in range(robots)]
    start = threading.Barrier(robots + 1)

    def drive(robot: int) -> None:
        client = RemotePolicy(url, spec.to_json())
        client.reset(robot)
        start.wait()
        took[robot] = timed(lambda: client.act(rgb, state, action, SENTENCE), steps)
        client.socket.close()

    threads = [threading.Thread(target=drive, args=(robot,)) for robot in range(robots)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return [ms for each in took for ms in each], robots * (WARM_UP + steps) / (time.perf_counter() - began)


def row(name: str, ms: list[float], rate: float, base: float) -> str:
    p50, p99 = np.percentile(ms, [50, 99])
    mean = statistics.fmean(ms)
    return f"{name:28}{p50:8.2f} ms{p99:8.2f} ms{rate:9.0f} steps/s{mean - base:+8.2f} ms{rate * base / 1e3:8.2f}"


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = config.policy or untrained_run(Path(folder) / "tap", **FULL_SIZE)
        size = load_policy(run)[0].bundle.network.config.image_size
        print(f"{'':28}{'p50':>11}{'p99':>11}{'throughput':>17}{'added':>11}{'ratio':>8}")
        for flags in ((), ("--no-batch-invariant",)):
            local: list[float] = []
            there: dict[int, tuple[list[float], list[float]]] = {robots: ([], []) for robots in config.robots}
            with server(run, *flags) as url:
                for _ in range(config.rounds):
                    local += in_process(run, size, config.steps)
                    for robots, (took, rates) in there.items():
                        ms, rate = remote(url, run, size, robots, config.steps)
                        took += ms
                        rates.append(rate)
            base = statistics.fmean(local)
            print(row("in process", local, 1e3 / base, base))
            for robots, (took, rates) in there.items():
                name = f"served, {robots} robots{' --no-batch-invariant' if flags else ''}"
                print(row(name, took, statistics.fmean(rates), base))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
