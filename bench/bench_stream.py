"""Measures windows per second into one training process: Ray Data against a torch DataLoader, same Parquet, same
windows.

    python bench/bench_stream.py --data data/play-...

Both decode in the same number of other processes and hand batches to this one, which only counts them. They take
turns, so that other load on the machine hits both; what is printed is the median of the rounds and their ratio.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator

import tyro
from torch.utils.data import DataLoader, IterableDataset

from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed import stream
from tap_ray.distributed.connect import connect
from tap_ray.types import Shard, Window


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """Dataset of play."""
    processes: int = 1
    """Processes that decode."""
    batches: int = 150
    """Batches a round; the first ones of a pipeline are not counted."""
    rounds: int = 3
    batch_size: int = 64


class Windows(IterableDataset):
    """`iterate` as torch sees it; worker w of the loader takes the groups of worker w."""

    def __init__(self, data: Path, windows: WindowConfig) -> None:
        self.data, self.windows = data, windows

    def __iter__(self) -> Iterator[Window]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return iterate(open_dataset(self.data), self.windows, seed=0, shard=Shard(worker=worker, num_workers=workers))


def torch_loader(config: Config, windows: WindowConfig) -> Iterator[Window]:
    return iter(
        DataLoader(Windows(config.data, windows), batch_size=None, num_workers=config.processes, prefetch_factor=8)
    )


def ray_data(config: Config, windows: WindowConfig) -> Iterator[Window]:
    return stream.batches(config.data.resolve(), windows, seed=0, num_data_workers=config.processes)


def rate(source: Callable[[], Iterator[Window]], config: Config) -> float:
    """Windows a second, after the pipeline has started."""
    batches = source()
    for _ in islice(batches, 30):
        pass
    start = time.perf_counter()
    num = sum(len(window.rgb) for window in islice(batches, config.batches))
    seconds = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()  # type: ignore[attr-defined]
    return num / seconds


def main(config: Config) -> None:
    windows = WindowConfig(batch_size=config.batch_size)
    sources = {"torch DataLoader": torch_loader, "Ray Data": ray_data}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    with connect():
        for _ in range(config.rounds):
            for name, source in sources.items():
                rates[name].append(rate(partial(source, config, windows), config))
    for name, values in rates.items():
        print(f"{name:17} {statistics.median(values):8.0f} windows/s   rounds {[round(v) for v in values]}")
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    print(f"Ray Data / torch DataLoader: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
