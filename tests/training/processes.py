"""Two processes that train together."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_two(work: Callable[..., None], *args: Any) -> None:
    """`work(rank, 2, *args)` for each rank. Both are forks of one process that has imported what `work` needs."""
    multiprocessing.set_forkserver_preload([work.__module__, "torch._dynamo"])  # as any optimizer of torch does
    mp.start_processes(work, (2, *args), nprocs=2, start_method="forkserver")
