"""Kill a sweep's driver again and again, and hold its table against that of the same sweep left alone.

    python -m tests.distributed.kill_sweep tune_configs/smoke.yaml --data data/play --demos data/demos --out /tmp/kills

Minutes long, so `make test` does not run it: its sweep of toy stages in test_sweep.py is killed once.
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tap_ray import runs


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which sweep, and how often it is killed."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """Its file."""
    data: Path
    """Dataset of play."""
    demos: Path
    """Dataset of demonstrations."""
    out: Path
    """Folder for both stores."""
    kills: int = 5
    """Kills, each at a moment drawn from the first half of the undisturbed sweep's time."""
    seed: int = 0
    """Of those moments."""
    undisturbed: Path | None = None
    """Run folder of the same sweep left alone; without it that is run first."""


def command(config: Config, store: Path) -> list[str]:
    flags = [
        "--data",
        str(config.data),
        "--demos",
        str(config.demos),
        "--store",
        str(store),
        "--out",
        str(store / "sweep"),
    ]
    return [sys.executable, "-m", "jobs.sweep", str(config.sweep), *flags]


def run(config: Config, store: Path) -> float:
    """To its end; seconds."""
    began = time.monotonic()
    subprocess.run(command(config, store), check=True)
    return time.monotonic() - began


def main(config: Config) -> None:
    alone = config.undisturbed or config.out / "undisturbed" / "sweep"
    if config.undisturbed is None:
        print(f"undisturbed: {run(config, alone.parent):.0f} s", flush=True)
    whole_s = runs.read_json(alone / "manifest.json")["seconds"]
    rng, store, began = random.Random(config.seed), config.out / "killed", time.monotonic()
    for number in range(config.kills):
        after_s = rng.uniform(0.0, 0.5) * whole_s
        driver = subprocess.Popen(command(config, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(after_s)
        ended = driver.poll() is not None
        driver.kill()
        driver.wait()
        rows = [runs.read_json(file) for file in sorted(store.glob("sweep/trials/*.json"))]
        states = ", ".join(f"{row['id']} {row['stage'] or row['state']}" for row in rows) or "no trial yet"
        print(f"kill {number + 1} after {after_s:.0f} s{' (it had ended)' * ended}: {states}", flush=True)
    print(f"last life: {run(config, store):.0f} s; in all {time.monotonic() - began:.0f} s", flush=True)
    tables = [runs.read_json(folder / "table.json") for folder in (alone, store / "sweep")]
    print("the tables are the same" if tables[0] == tables[1] else f"THE TABLES DIFFER:\n{tables[0]}\n{tables[1]}")
    sys.exit(tables[0] != tables[1])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
