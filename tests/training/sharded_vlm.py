"""A real image-text model (tiny, random weights) in Stage 2, trained by two processes: `--parallel ddp` and `fsdp`.
With `ddp` also a small policy, whose BatchNorm counts each process's own batches."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import nn
from transformers.utils import logging

from tap_ray.align.demos import AlignConfig, StartFrom, from_dataset, resolve_configs
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.models.fast import TokensConfig
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.training import session
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.session import TrainJob, WorkerContext
from tap_ray.training.sharding import shard
from tap_ray.training.stage import Stage
from tests.training.sharded import CPU

STEPS = 3
WINDOWS = WindowConfig(horizon=2, batch_size=6, holdout_every=5, group_size=4)
SIZES = PolicyConfig(head_width=32, num_context=16, tokens=TokensConfig(), prior=PriorConfig(chunk=2, width=32))
CASES = {"regression": ("regression", 0), "tokens": ("tokens", 0), "flow": ("flow", 0), "lora": ("regression", 2)}
CASES["layers"] = ("regression", 2)
SMALL = "small"


def policy_of(case: str, source: str) -> tuple[PolicyConfig, WindowConfig]:
    """Head and adapters of a case."""
    if case == SMALL:
        return resolve_configs(SIZES, WINDOWS, config=AlignConfig(), prior=None, history=0)
    head, lora = CASES[case]
    layers = "all" if case == "layers" else "last"
    vlm = VlmConfig(pretrained=source, lora_rank=lora, freeze="vision" if lora else "none", head_layers=layers)
    return resolve_configs(
        replace(SIZES, head=head, vlm=vlm),  # type: ignore[arg-type]
        WINDOWS,
        config=AlignConfig(),
        prior=None,
        history=0,
    )


def stage_2(case: str, source: str, data: Path) -> Stage:
    """From scratch, on made demonstrations."""
    policy, windows = policy_of(case, source)
    start = StartFrom(init=None)
    stage, _ = from_dataset(open_dataset(data), windows, policy=policy, config=AlignConfig(), start=start, seed=0)
    return stage


def job(run: Path, case: str, source: str, data: Path) -> TrainJob:
    """A few exact steps."""
    how = TrainConfig(
        steps=STEPS, lr=1e-3, checkpoint_every=STEPS, validate_every=STEPS, log_every=1, batch_size=6, bf16="off",
        augment=AugmentConfig(shift_px=0), ema_decay=0.9,
    )  # fmt: skip
    batches = partial(iterate, open_dataset(data), policy_of(case, source)[1], seed=0)
    return TrainJob(run=run, build=partial(stage_2, case, source, data), batches=batches, config=how)


def train_each(rank: int, world: int, folder: Path, source: str, data: Path, cases: Sequence[str]) -> None:
    """One of the processes: each case whole, and cut."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.disable_progress_bar()
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=timedelta(minutes=9))
    for case in cases:
        for parallel in ("ddp", "fsdp")[: 1 if case == SMALL else 2]:
            run = folder / f"{case}-{parallel}"
            run.mkdir(exist_ok=True)
            prepare = partial(shard, device=CPU) if parallel == "fsdp" else nn.parallel.DistributedDataParallel
            context = WorkerContext(rank=rank, world=world, prepare=prepare, sharded=parallel == "fsdp")
            session.work(job(run, case, source, data), context)
            dist.barrier()
    dist.destroy_process_group()
