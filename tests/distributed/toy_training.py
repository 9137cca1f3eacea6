"""A training task small enough to be killed twenty times: a linear map from the mean color to the action."""

import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn

from tap_ray.dataset.mixture import Mixture, alone, joined
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed import stream
from tap_ray.training import optim
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.session import TrainJob
from tap_ray.training.sharding import Each
from tap_ray.types import Shard, Window

WINDOWS = WindowConfig(batch_size=4, group_size=6, holdout_every=5)
SEED = 3


class Color(nn.Module):
    """(N, Y, X, 3) uint8 -> (N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.linear = nn.Linear(3, 7)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.linear(rgb.float().mean(dim=(1, 2)) / 255)


@dataclass(frozen=True)
class Hold:
    """Training waits at a step of each of its lives as long as the file is there: who kills it need not hurry."""

    file: Path
    step: int


class Regression:
    """The objective. `pause_s` is the shortest time that a step takes."""

    name = "toy"

    def __init__(self, pause_s: float, bad_step: int, hold: Hold | None) -> None:
        self.pause_s, self.bad_step, self.hold, self.step = pause_s, bad_step, hold, 0

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.pause_s)
        while self.hold and self.step == self.hold.step and self.hold.file.exists():
            time.sleep(0.02)
        self.step += 1
        loss = (model(batch["rgb"]) - batch["action"][:, 0]).square().mean()
        return loss, {"toy/loss": loss * (float("nan") if self.step == self.bad_step else 1.0)}


@dataclass(frozen=True)
class ToyStage:
    """What learns."""

    objective: Regression
    network: Color = field(default_factory=Color)
    lr_scale: dict[str, float] = field(default_factory=dict)
    kind: str = "toy"

    def validate(self, *, each: Each = map) -> dict[str, float]:
        return {"toy/held_out": float(self.network.linear.weight.detach().abs().sum())}

    def save(self, run: Path) -> None:
        (run / "exported.json").write_text(json.dumps(self.network.linear.bias.tolist()))

    def metadata(self) -> dict[str, str]:
        return {"kind": self.kind}


def stage(pause_s: float, bad_step: int, hold: Hold | None = None) -> ToyStage:
    return ToyStage(Regression(pause_s, bad_step, hold))


DETERMINISTIC = "True, :4096:8"


def stage_with_settings(pause_s: float = 0.0) -> ToyStage:
    """Its checkpoints say how torch computes."""
    kind = f"{torch.are_deterministic_algorithms_enabled()}, {os.environ.get('CUBLAS_WORKSPACE_CONFIG')}"
    return replace(stage(pause_s, 0), kind=kind)


def deadly() -> ToyStage:
    """Dies as if the machine had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def by_hand(config: TrainConfig) -> tuple[Color, torch.optim.AdamW]:
    """Model and optimizer as `fit` makes them."""
    model = Color()
    return model, optim.adamw(model, lr=config.lr, weight_decay=config.weight_decay)


def squared_error(model: nn.Module, window: Window) -> Tensor:
    return (model(torch.from_numpy(window.rgb)) - torch.from_numpy(window.action)[:, 0]).square().mean()


def step_by_hand(model: nn.Module, optimizer: torch.optim.AdamW, loss: Tensor, step: int, config: TrainConfig) -> None:
    factor = optim.schedule(step, num_steps=config.steps, warmup_fraction=config.warmup_fraction)
    optim.set_learning_rate(optimizer, factor)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()


def local_batches(data: Path | Mixture, *, shard: Shard) -> Iterator[Window]:
    """What the streams of Ray give, decoded in this process."""
    mixture = data if isinstance(data, Mixture) else alone(open_dataset(data))
    parts = zip(mixture.sets, mixture.windows(WINDOWS), mixture.seeds(SEED), strict=True)
    streams = [iterate(dataset, windows, seed=seed, shard=shard) for dataset, windows, seed in parts]
    return map(joined, zip(*streams, strict=True))


def toy_task(
    run: Path,
    data: Path | Mixture,
    *,
    ray: bool,
    steps: int = 20,
    every: int = 5,
    pause_s: float = 0.0,
    bad_step: int = 0,
) -> TrainJob:
    if isinstance(data, Mixture):
        batches = partial(stream.mixed_batches, data, WINDOWS, seed=SEED)
    else:
        batches = partial(stream.batches, data, WINDOWS, seed=SEED)
    return TrainJob(
        run=run,
        build=partial(stage, pause_s, bad_step),
        batches=batches if ray else partial(local_batches, data),
        config=TrainConfig(
            augment=AugmentConfig(shift_px=0),
            steps=steps,
            lr=0.1,
            checkpoint_every=every,
            validate_every=every,
            log_every=1,
            batch_size=4,
            bf16="off",
        ),
    )


def held(task: TrainJob, file: Path) -> TrainJob:
    """A task that waits two steps after the first checkpoint of each of its lives until `file`, made here, is gone."""
    file.touch()
    return replace(task, build=partial(stage, 0.0, 0, Hold(file, task.config.checkpoint_every + 2)))
