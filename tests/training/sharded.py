"""A network with repeated layers, trained by two processes as `--parallel ddp` and as `--parallel fsdp` have it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tap_ray.models.weights import write_tensors
from tap_ray.training import session
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.session import TrainJob, WorkerContext
from tap_ray.training.sharding import Each, shard
from tests.distributed import toy_training as toy

CPU = torch.device("cpu")
STEPS, HALF = 8, 4
NOTICED_AT = (3, 2)
"""Step behind which each process knows that a machine will be preempted."""


class Layer(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.gelu(self.linear(x))


class Network(nn.Module):
    """(N, Y, X, 3) uint8 -> (N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 7)
            self.layers = nn.ModuleList([Layer(), Layer()])
        self.first.bias.requires_grad_(False)

    def forward(self, rgb: Tensor) -> Tensor:
        x = self.first(rgb.float().mean(dim=(1, 2)) / 255)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


@dataclass(frozen=True)
class Stage:
    network: Network = field(default_factory=Network)
    objective: toy.Regression = field(default_factory=lambda: toy.Regression(0.0, 0, None))
    lr_scale: dict[str, float] = field(default_factory=lambda: {"first": 0.5})

    def validate(self, *, each: Each = map) -> dict[str, float]:
        scored: list[int] = []

        def score(shade: int) -> float:
            scored.append(shade)
            return float(self.network(torch.full((2, 4, 4, 3), shade, dtype=torch.uint8)).detach().sum())

        return {"toy/held_out": sum(each(score, (10, 100, 200))), "toy/scored_here": len(scored)}

    def save(self, run: Path) -> None:
        write_tensors(run / "final.safetensors", self.network.state_dict())

    def metadata(self) -> dict[str, Any]:
        return {"kind": "layers"}


def slow(pause_s: float) -> Stage:
    """Whose steps take so long."""
    return Stage(objective=toy.Regression(pause_s, 0, None))


def job(run: Path, data: Path, *, every: int = HALF, bf16: Literal["on", "off"] = "off") -> TrainJob:
    how = TrainConfig(
        steps=STEPS, lr=0.1, checkpoint_every=every, validate_every=HALF, log_every=1, batch_size=4, bf16=bf16,
        ema_decay=0.9, gradient_accumulation_steps=2, augment=AugmentConfig(shift_px=0),
    )  # fmt: skip
    return TrainJob(run=run, build=Stage, batches=partial(toy.local_batches, data), config=how)


def curve(run: Path, name: str = "toy/loss") -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in session.read_metrics(run / session.METRICS) if name in line]


def half_of(run: Path, cut: Path) -> Path:
    """The run as it was killed behind its first checkpoint."""
    shutil.copytree(run, cut)
    shutil.rmtree(cut / session.CHECKPOINTS / f"step-{STEPS:08d}")
    (cut / "final.safetensors").unlink()
    return cut


def train_both(rank: int, world: int, folder: Path, data: Path) -> None:
    """One of the processes: whole runs of either kind, then each kind from the other's checkpoint and from its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=timedelta(minutes=9))
    sharded: Callable[[nn.Module], nn.Module] = partial(shard, device=CPU)
    for run, source, parallel in (
        ("ddp", "", "ddp"), ("fsdp", "", "fsdp"), ("killed", "fsdp", "fsdp"), ("from_ddp", "ddp", "fsdp"),
        ("from_fsdp", "fsdp", "ddp"), ("preempted", "", "fsdp"), ("ddp_bf16", "", "ddp"), ("fsdp_bf16", "", "fsdp"),
        ("async", "", "fsdp"),
    ):  # fmt: skip
        if source and rank == 0:
            half_of(folder / source, folder / run)
        dist.barrier()
        (folder / run).mkdir(exist_ok=True)
        prepare = sharded if parallel == "fsdp" else nn.parallel.DistributedDataParallel
        context = WorkerContext(rank=rank, world=world, prepare=prepare, sharded=parallel == "fsdp")
        if run == "preempted":
            context = replace(context, leaving=iter([()] * (NOTICED_AT[rank] - 1) + [("a",)] * STEPS).__next__)
        every, bf16 = 0 if run == "preempted" else HALF, "on" if run.endswith("bf16") else "off"
        work = replace(job(folder / run, data, every=every, bf16=bf16), async_checkpoints=run == "async")
        session.work(work, context)
        dist.barrier()
    dist.destroy_process_group()
