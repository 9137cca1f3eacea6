"""Measures what one driver and one machine of a large collection can handle, each part alone: writer, object store,
tasks, actors.

    python -m bench.bench_parts [--seconds 3]

A fleet's own speed is measured beside them, so that each part says how many fleets it keeps up with:

    part's rate / one fleet's rate = fleets at which it is the bottleneck

The absolute numbers are this machine's; the ratios move little between machines (docs/scaling.md computes with them).
"""

import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import tyro

import envs
from bench.bench_play import PLAN
from jobs.collect_play import fleet
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import BLOCK_BATCHES
from tap_ray.distributed.connect import connect
from tap_ray.play.collect import AttemptResult
from tap_ray.types import Episode


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    seconds: float = 3.0
    """Duration of each measurement, s."""
    episodes: int = 16
    """Episodes that a fleet plays first; the writer and the store are given them again and again."""


Clock = Callable[[], float]
"""`time.process_time` hardly depends on what else the machine does, and does not see what others do for us."""


def per_second(action: Callable[[], Any], seconds: float, clock: Clock = time.perf_counter) -> float:
    """How often it can be done in a second of a clock; once before without being counted."""
    action()
    start, times = clock(), 0
    while (passed := clock() - start) < seconds:
        action()
        times += 1
    return times / passed


def played(config: Config) -> tuple[list[Episode], float]:
    """Episodes, and the frames a second of processor time that one fleet plays and encodes."""
    player = fleet(PLAN, 1, None)
    player.run([0])
    start = time.process_time()
    outcomes = [outcome for attempt in range(config.episodes) for outcome in player.run([attempt])]
    seconds = time.process_time() - start
    episodes = [outcome.episode for outcome in outcomes if outcome.episode is not None]
    return episodes, sum(map(len, episodes)) / seconds


def writer_frames_s(episodes: list[Episode], seconds: float, clock: Clock) -> float:
    """Frames a second through DatasetWriter on this machine's disk, its commits and fsyncs included."""
    size = PLAN.env.image_size
    header = DatasetHeader(
        spec=envs.spec(PLAN.env), plan=PLAN.to_json(), image_size=(size, size), num_objects=envs.NUM_SLOTS
    )
    with tempfile.TemporaryDirectory() as folder, DatasetWriter(Path(folder), header) as writer:

        def write() -> None:
            for _ in range(header.episodes_per_file):  # a whole file, so that each commit is counted with its frames
                index = writer.appended
                writer.append(replace(episodes[index % len(episodes)], index=index))

        return per_second(write, seconds, clock) * header.episodes_per_file * float(np.mean([len(e) for e in episodes]))


def unpickled_frames_s(blobs: list[bytes], frames: float, seconds: float) -> float:
    """Frames a second that the driver turns from a block's bytes into episodes."""
    return per_second(lambda: [pickle.loads(blob) for blob in blobs], seconds) * len(blobs) * frames


class Echo:
    """An actor that answers."""

    def answer(self) -> None:
        """Nothing."""


def main(config: Config) -> None:
    """Print each part's rate, and at how many fleets it saturates."""
    episodes, fleet_frames_s = played(config)
    frames = float(np.mean([len(episode) for episode in episodes]))
    blobs = [pickle.dumps(AttemptResult(attempt=n, episode=episode)) for n, episode in enumerate(episodes)]
    frame_bytes = sum(map(len, blobs)) / frames / len(blobs)
    some = [blobs[n % len(blobs)] for n in range(BLOCK_BATCHES)]
    block = pa.table({"result": pa.array(some, pa.binary())})
    block_frames = BLOCK_BATCHES * frames
    every_s = block_frames / fleet_frames_s
    print(f"one fleet, a core to itself: {fleet_frames_s:.0f} frames/s of {frame_bytes:.0f} bytes")
    print(f"a hand-over: {BLOCK_BATCHES} episodes, {block.nbytes / 1e6:.2f} MB, every {every_s:.1f} s from each fleet")
    rates = {
        "writer, disk included": writer_frames_s(episodes, config.seconds, time.perf_counter),
        "writer, its processor time": writer_frames_s(episodes, config.seconds, time.process_time),
    }
    rates["driver unpickles"] = unpickled_frames_s(blobs, frames, config.seconds)
    with connect(num_cpus=1):
        echo = ray.remote(num_cpus=0)(Echo).remote()
        task = ray.remote(num_cpus=0)(lambda: None)
        rates["object store put + get"] = per_second(lambda: ray.get(ray.put(block)), config.seconds) * block_frames
        trips = {
            "actor calls, one at a time": per_second(lambda: ray.get(echo.answer.remote()), config.seconds),
            "tasks, 100 at a time": 100
            * per_second(lambda: ray.get([task.remote() for _ in range(100)]), config.seconds),
            "actors made (GCS)": per_second(lambda: made_and_ready(Echo), config.seconds),
        }
    width = max(map(len, [*rates, *trips]))
    print(f"{'part alone':<{width}}  {'frames/s':>10}  {'MB/s':>8}  {'= fleets':>8}")
    for name, rate in rates.items():
        print(f"{name:<{width}}  {rate:>10.0f}  {rate * frame_bytes / 1e6:>8.1f}  {rate / fleet_frames_s:>8.0f}")
    print()
    for name, rate in trips.items():
        print(f"{name:<{width}}  {rate:>10.0f} /s")


def made_and_ready(cls: type) -> None:
    """An actor's whole life."""
    actor: Any = ray.remote(num_cpus=0)(cls).remote()
    ray.get(actor.answer.remote())
    ray.kill(actor)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
