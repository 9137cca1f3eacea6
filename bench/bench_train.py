"""Measures the overhead of Ray Train per step: the same loop, model and batches in this process and in a Ray Train
worker.

    python bench/bench_train.py --data data/play-...

The batches are decoded before and repeated, so that only the loop is timed. The two take turns; what is printed is
the median seconds a step of each and the median of the rounds' ratios (target: at most 1.05).
"""

import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Iterator

import tyro

from tap_ray.dataset.mixture import alone
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed.connect import connect
from tap_ray.distributed.train import train
from tap_ray.settings import PretrainConfig, WorkersConfig
from tap_ray.stages import pretrain_stage
from tap_ray.training import session
from tap_ray.training.loop import TrainConfig
from tap_ray.training.progress import train_here
from tap_ray.training.session import TrainJob
from tap_ray.types import Shard, Window

DIFFERENT_BATCHES = 8
WARM_UP = 3
"""Lines of metrics that do not count."""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """Dataset of play."""
    steps: int = 60
    rounds: int = 3
    batch_size: int = 32


def repeated(data: Path, windows: WindowConfig, *, shard: Shard) -> Iterator[Window]:
    """Repeat a few batches forever."""
    source = iterate(open_dataset(data), windows, seed=0, shard=replace(shard, start_batch=0))
    return cycle(list(islice(source, DIFFERENT_BATCHES)))


def seconds_a_step(run: Path, batch_size: int) -> float:
    lines = session.read_metrics(run / session.METRICS)
    rates = [line["play/samples_per_s"] for line in lines if "play/samples_per_s" in line][WARM_UP:]
    return statistics.median(batch_size / rate for rate in rates)


def main(config: Config) -> None:
    data = config.data.resolve()
    how = TrainConfig(
        steps=config.steps, batch_size=config.batch_size, log_every=5, checkpoint_every=0, validate_every=0
    )
    stage = PretrainConfig(data=(str(data),), train=how)
    times: dict[str, list[float]] = {"this process": [], "Ray Train": []}
    with tempfile.TemporaryDirectory() as folder, connect():
        for number in range(config.rounds):
            for name in times:
                job = TrainJob(
                    run=Path(folder) / f"{name}-{number}".replace(" ", "-"),
                    build=partial(pretrain_stage, stage, alone(open_dataset(data))),
                    batches=partial(repeated, data, stage.resolve_windows()),
                    config=how,
                )
                if name == "Ray Train":
                    train(job, WorkersConfig(), progress=False)
                else:
                    train_here(job, progress=False)
                times[name].append(seconds_a_step(job.run, config.batch_size))
    for name, values in times.items():
        rounds = [round(1000 * value, 1) for value in values]
        print(f"{name:13} {1000 * statistics.median(values):7.1f} ms a step   rounds {rounds}")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"Ray Train / this process: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
