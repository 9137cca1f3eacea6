"""Measures the cost of an object store with a delay before every request: collection, reading, a line of metrics.

    python -m bench.bench_s3 --data data/play-... [--rate 12] [--delay-ms 40]

The store is moto's server on this machine; all requests go through a proxy in this process that waits and counts.
Episodes of a play dataset are given to a writer at the pace of so many fleets, once to a local disk and once to the
store. Then a group of episodes of the latter, which holds them in files of `per_file`, is read, and two epochs.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro

from tap_ray import logs, storage
from tap_ray.dataset import layout
from tap_ray.dataset.reader import DatasetInfo, open_dataset, read_episodes
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.types import Episode
from tests import s3

COLUMNS = [layout.IMAGE, layout.STATE, layout.ACTION, layout.CONTACT]
"""Columns from which training windows are made."""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """Dataset of play, on a disk."""
    rate: float = 12.0
    """Episodes a second that fleets bring; one of them makes about 1.5."""
    episodes: int = 640
    per_file: int = 64
    delay_ms: float = 40.0
    """Delay before each request, ms."""
    group: int = 16
    """Episodes of a group that is read."""
    lines: int = 100


def episodes_of(dataset: DatasetInfo, count: int) -> list[Episode]:
    """Some episodes as a fleet hands them over."""
    stats = dataset.stats[layout.IMAGE]
    return [
        replace(each, image_stats=stats, meta={"seed": each.index}) for each in read_episodes(dataset, range(count))
    ]


def collect(path: Path, dataset: DatasetInfo, episodes: Sequence[Episode], config: Config) -> float:
    """Episodes a second, from the first one to the last commit, when they come at `rate`."""
    header = replace(dataset.header, episodes_per_file=config.per_file)
    with DatasetWriter(path, header) as writer:
        start = time.perf_counter()
        for number in range(config.episodes):
            time.sleep(max(0.0, start + (number + 1) / config.rate - time.perf_counter()))
            writer.append(replace(episodes[number % len(episodes)], index=number, meta={"seed": number}))
        writer.commit()
        return config.episodes / (time.perf_counter() - start)


def needed(path: Path, dataset: DatasetInfo, episodes: Sequence[int]) -> int:
    """Bytes of the columns of these episodes."""
    total = 0
    for number, group in dataset.episodes.iloc[list(episodes)][["file", "row_group"]].to_numpy():
        about = pq.read_metadata(path / layout.data_file(int(number))).row_group(int(group))
        chunks = [about.column(i) for i in range(about.num_columns)]
        total += sum(c.total_compressed_size for c in chunks if c.path_in_schema.startswith(tuple(COLUMNS)))
    return total


def fetched(wire: s3.Wire, read: Callable[[], object]) -> str:
    wire.requests.clear()
    start = time.perf_counter()
    read()
    took, gets = time.perf_counter() - start, wire.took("GET", "/data/")
    return f"{sum(each.got for each in gets)} bytes in {len(gets)} GETs, {took:.2f} s"


def main(config: Config) -> None:
    dataset = open_dataset(config.data)
    episodes = episodes_of(dataset, min(config.episodes, len(dataset), 200))
    with s3.served() as server, tempfile.TemporaryDirectory(prefix="tap_ray_bench_") as folder:
        wire, here = s3.Wire(server, config.delay_ms / 1000), Path(folder) / "play"
        os.environ.update(server.env | {"AWS_ENDPOINT_URL": wire.endpoint, "TAP_RAY_CACHE": f"{folder}/cache"})
        remote = storage.to_path(f"{server.uri}/play")
        disk, bucket = collect(here, dataset, episodes, config), collect(remote, dataset, episodes, config)
        print(f"collection at {config.rate} episodes/s, {config.delay_ms} ms a request: disk {disk:.2f} episodes/s,")
        print(f"  store {bucket:.2f}, which is {100 * bucket / disk:.1f} %")

        there = open_dataset(remote)
        whole = sum((here / layout.data_file(n)).stat().st_size for n in set(there.episodes["file"]))
        every = np.random.default_rng(1).permutation(len(there))
        one = {"of one file": np.random.default_rng(0).permutation(config.per_file), "of all files": every}
        for name, order in one.items():
            group = order[: config.group]
            traffic = fetched(wire, lambda: list(read_episodes(there, group, COLUMNS)))  # noqa: B023
            print(f"{config.group} episodes {name}, which need {needed(here, there, group.tolist())} bytes: {traffic}")
            shutil.rmtree(f"{folder}/cache")
        for epoch in range(2):
            groups = [every[i : i + config.group] for i in range(0, len(every), config.group)]
            traffic = fetched(wire, lambda: [list(read_episodes(there, each, COLUMNS)) for each in groups])  # noqa: B023
            print(f"epoch {epoch}, files of {whole} bytes, needs {needed(here, there, every.tolist())}: {traffic}")

        took = []
        for number in range(config.lines):
            start = time.perf_counter()
            logs.append(remote.parent / "metrics.jsonl", f'{{"step": {number}, "loss": 0.1}}\n')
            took.append(1000 * (time.perf_counter() - start))
        print(f"a line of metrics: median {np.median(took):.0f} ms, mean of {config.lines} {np.mean(took):.0f} ms")


if __name__ == "__main__":
    main(tyro.cli(Config))
