"""Contains the one training loop, `fit`. It depends neither on Ray nor on MLflow nor on the objective.

Each step takes G batches (`gradient_accumulation_steps`): to resume at step s, pass an iterator that starts at batch s
* G.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Iterator, Literal, Mapping, Protocol, Sequence, cast

import torch
from torch import Tensor, nn

from tap_ray.errors import ConfigError, DataError, TapRayError
from tap_ray.models.batch import Batch, Kept, MotionBatch
from tap_ray.models.precision import autocast
from tap_ray.rng import seed_of
from tap_ray.training import checkpoint, optim
from tap_ray.training.accumulation import exchange, shares
from tap_ray.training.batches import AugmentConfig, augment, to_tensors_beside
from tap_ray.training.checkpoint import TrainState
from tap_ray.training.sharding import part, whole
from tap_ray.types import ActionChunkBatch, Window


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop, for all stages."""

    steps: int = 6000
    """Optimizer steps."""
    batch_size: int = 64
    """Windows per worker and step."""
    gradient_accumulation_steps: int = 1
    """Number of batches of `batch_size` windows whose gradients are accumulated for one step; 1 turns accumulation
    off."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, for matrices and kernels only; 0 turns it off."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running averages."""
    warmup_fraction: float = 0.05
    """Fraction of the steps in which the learning rate rises linearly; 0 starts at the full rate."""
    clip: float = 1.0
    """Largest L2 norm of the gradient; 0 turns clipping off."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """bfloat16 in matrix products and convolutions; "auto": if this machine has hardware for it."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights, which is validated and stored; 0 turns averaging
    off."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the training images."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes only the last one."""
    validate_every: int = 1000
    """Steps between validations on held-out data; 0 validates only at the end."""
    log_every: int = 50
    """Steps between lines of metrics, each the mean since the line before."""
    seed: int = 0
    """Seed of the initial weights, of the augmentation, and of the noise that models sample."""

    @property
    def windows_per_step(self) -> int:
        """Number of windows of one worker in one step."""
        return self.batch_size * self.gradient_accumulation_steps

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "validate_every"):
            every = getattr(self, name)
            if self.log_every and every % self.log_every:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must be a multiple of --log-every {self.log_every}; got {every}. "
                    "Otherwise the first line of metrics after a restart would be the mean over other steps than "
                    "without a restart."
                )


class Objective(Protocol):
    """The objective of a stage."""

    @property
    def name(self) -> str:
        """First part of every metric's name, e.g. "play"."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and scalar metrics ("play/loss", ...) of one batch (`Batch` or `MotionBatch`, as the model takes
        it); calls `model(...)` exactly once."""
        ...


def _no_log(metrics: Mapping[str, float], step: int) -> None: ...


def _no_save(step: int, write: Callable[[Path], None]) -> None: ...


def _no_validation() -> dict[str, float]:
    return {}


def _unchanged(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions of the caller that the loop calls; every default does nothing."""

    log: Callable[[Mapping[str, float], int], None] = _no_log
    """Called with (metrics, number of completed steps)."""
    save: Callable[[int, Callable[[Path], None]], None] = _no_save
    """(steps done, write): decides whether and where; `write(folder)` writes a whole checkpoint there. Called on
    every worker."""
    save_copies: bool = False
    """Whether `write` may be called later, while training goes on."""
    validate: Callable[[], dict[str, float]] = _no_validation
    """Returns metrics of the current model on held-out data. Called on every worker."""
    prepare: Callable[[nn.Module], nn.Module] = _unchanged
    """Wraps the model for several workers, before there is an optimizer."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the training."""
    rank: int = 0
    """This worker's number, so that each augments differently."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON kept in each checkpoint that must be equal on resuming (the policy's config)."""
    position: Callable[[int], Mapping[str, Any]] = lambda step: {}
    """Plain JSON kept beside each checkpoint's step: where in the data the run is then."""
    leaving: Callable[[], bool] = lambda: False
    """Whether to save an extra checkpoint now, the same on every worker; called after each line of metrics."""


def fit(
    model: nn.Module,
    batches: Iterator[Window | ActionChunkBatch],
    objective: Objective,
    config: TrainConfig,
    *,
    hooks: Hooks | None = None,
    resume: Path | None = None,
    lr_scale: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Train `model` in place.

    Args:
        model: bare; it ends with the averaged weights if `config.ema_decay` asks for them.
        batches: windows; the first is batch number 0, or when resuming the first that the checkpoint's step takes.
        objective: the loss.
        config: settings of the loop.
        hooks: functions of the caller.
        resume: checkpoint to resume from; None starts at step 0.
        lr_scale: see `optim.adamw`.

    Returns:
        The last line of metrics, validation included.

    Raises:
        CheckpointError: `resume` is missing or does not fit.
        DataError: the batches ended too early.
        TapRayError: the loss is not finite.
    """
    hooks = hooks or Hooks()
    prepared = hooks.prepare(model)
    state = start(model, config, hooks, resume=resume, lr_scale=lr_scale)
    meter = Meter(objective.name, config.windows_per_step)
    metrics: dict[str, float] = {}
    model.train()
    while state.step < config.steps:
        numbers = _numbers(state.step, config)
        taken = [_batch(batches, number, state.step, config, hooks, meter, _on_cpu(model)) for number in numbers]
        parts = _backward(prepared, objective, taken, state, config, hooks)
        norm = _update(state, config)
        meter.add({**parts, f"{objective.name}/grad_norm": norm})
        if _due(state.step, config.log_every, config.steps):
            fresh = meter.flush() | {f"{objective.name}/lr": max(g["lr"] for g in state.optimizer.param_groups)}
            _require_finite(fresh, objective.name, state.step)
            hooks.log(fresh, state.step)
            metrics |= fresh
        if _due(state.step, config.validate_every, config.steps):
            with meter.paused():
                began = time.perf_counter()
                validation = _validate(model, state, hooks)
                validation |= {f"{objective.name}/validate_s": time.perf_counter() - began} if validation else {}
            metrics |= validation
            hooks.log(validation, state.step)
        # Only after a line of metrics, so that no interval of metrics is split.
        urgent = _due(state.step, config.log_every, config.steps) and hooks.leaving()
        if urgent or _due(state.step, config.checkpoint_every, config.steps):
            with meter.paused():
                kept = checkpoint.snapshot(state, copied=hooks.save_copies)
                more = hooks.position(state.step)
                hooks.save(
                    state.step,
                    lambda folder, kept=kept, more=more: checkpoint.save(folder, kept, hooks.metadata, **more),
                )
                del kept
    if state.ema is not None:
        model.load_state_dict(state.ema, strict=False)
    return metrics


def start(
    model: nn.Module,
    config: TrainConfig,
    hooks: Hooks,
    *,
    resume: Path | None = None,
    lr_scale: Mapping[str, float] | None = None,
) -> TrainState:
    """The training state at step 0, or from the checkpoint `resume`."""
    model.to(hooks.device)
    optimizer = optim.adamw(
        model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas, lr_scale=lr_scale
    )
    ema = {name: value.clone() for name, value in _averaged(model)} if config.ema_decay else None
    state = TrainState(model=model, optimizer=optimizer, ema=ema)
    if resume is not None:
        checkpoint.load_into(resume, state, hooks.metadata)
    return state


class Meter:
    """Accumulates metrics, time spent waiting for data, and samples per second since the last flush."""

    def __init__(self, name: str, batch_size: int) -> None:
        self._name, self._batch_size = name, batch_size
        self._sums: dict[str, Tensor] = {}
        self._steps, self._waited_s = 0, 0.0
        self._since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Add the time that a step waited for its batch, s."""
        self._waited_s += seconds

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add the metrics of one step; they stay on the device, so that nothing waits for it."""
        self._steps += 1
        for key, value in parts.items():
            value = value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude time that is not training (validation, checkpoints) from the rate."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def flush(self) -> dict[str, float]:
        """Return the means over the steps since the last flush, and reset."""
        now = time.perf_counter()
        metrics = {key: float(value) / self._steps for key, value in self._sums.items()}
        metrics[f"{self._name}/data_wait_s"] = self._waited_s / self._steps
        metrics[f"{self._name}/samples_per_s"] = self._steps * self._batch_size / (now - self._since)
        self._sums, self._steps, self._waited_s, self._since = {}, 0, 0.0, now
        return metrics


def _numbers(step: int, config: TrainConfig) -> range:
    """Indices of the batches of a step."""
    return range(step * config.gradient_accumulation_steps, (step + 1) * config.gradient_accumulation_steps)


def _batch(
    batches: Iterator[Window | ActionChunkBatch],
    number: int,
    step: int,
    config: TrainConfig,
    hooks: Hooks,
    meter: "Meter",
    on_cpu: Collection[str],
) -> Batch | MotionBatch:
    """The next batch, on the device (but `on_cpu`) and augmented; `number` is its own and decides what is drawn for
    it."""
    before = time.perf_counter()
    try:
        window = next(batches)
    except StopIteration:
        raise DataError(f"The batches ended at step {step}. Use an iterator that repeats, or fewer --steps.") from None
    meter.waited(time.perf_counter() - before)
    batch = to_tensors_beside(window, hooks.device, on_cpu)
    if "rgb" in batch:
        batch = augment(batch, config.augment, seed=config.seed, step=number, rank=hooks.rank)
    batch["step"] = torch.tensor(step)
    return batch


def _on_cpu(model: nn.Module) -> tuple[str, ...]:
    """What a policy reads on the CPU; a motion prior reads nothing there."""
    return getattr(model, "on_cpu", ())


def _backward(
    prepared: nn.Module,
    objective: Objective,
    batches: Sequence[Batch | MotionBatch],
    state: TrainState,
    config: TrainConfig,
    hooks: Hooks,
) -> dict[str, Tensor]:
    """Compute the gradient of the mean over the batches; returns the mean metrics.

    A batch's share of a mean is that of the entries that it brings, see `accumulation.shares`. Workers exchange their
    gradients once, with the last batch.
    """
    state.optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    called = cast(nn.Module, lambda batch: prepared(Kept(batch))) if _on_cpu(state.model) else prepared
    for number, batch in zip(_numbers(state.step, config), shares(objective, batches), strict=True):
        # Random numbers that models draw during training.
        torch.manual_seed(seed_of(config.seed, "noise", number, hooks.rank))
        with exchange(prepared, needed=batch is batches[-1]):
            with autocast(config.bf16, hooks.device, state.model):
                loss, parts = objective.loss(called, batch)
            (loss / len(batches)).backward()
        for key, value in parts.items():
            value = value.detach() / len(batches)
            means[key] = means[key] + value if key in means else value
    return means


def _update(state: TrainState, config: TrainConfig) -> Tensor:
    """One optimizer step; returns the gradient's norm before clipping."""
    factor = optim.schedule(state.step, num_steps=config.steps, warmup_fraction=config.warmup_fraction)
    optim.set_learning_rate(state.optimizer, factor)
    norm = whole(nn.utils.clip_grad_norm_(state.model.parameters(), config.clip or float("inf")))
    state.optimizer.step()
    state.step += 1
    if state.ema is not None:
        # As in timm and diffusers: without a warm-up the average of a short run is mostly its random start.
        _average(state.ema, state.model, min(config.ema_decay, (1 + state.step) / (10 + state.step)))
    return norm


@torch.no_grad()
def _average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    averaged = dict(_averaged(model))
    means, values = [part(ema[name]) for name in averaged], [part(value) for value in averaged.values()]
    torch._foreach_lerp_(means, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The averaged tensors: parameters, and floating-point buffers such as BatchNorm's statistics."""
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())


def _validate(model: nn.Module, state: TrainState, hooks: Hooks) -> dict[str, float]:
    """Validate in evaluation mode, with the averaged weights if there are any."""
    _exchange(model, state.ema or {})
    model.eval()
    with torch.no_grad():
        metrics = hooks.validate()
    model.train()
    _exchange(model, state.ema or {})
    return metrics


@torch.no_grad()
def _exchange(model: nn.Module, ema: dict[str, Tensor]) -> None:
    """Exchange the model's weights and their averages in place, one tensor after the other: a copy of all weights would
    need memory. FSDP gathers from where its shards lie, so that they cannot be exchanged as objects."""
    weights = model.state_dict()  # of a sharded model this also drops what is still gathered
    for name in ema.keys() & weights.keys():
        weight, mean = part(weights[name]), part(ema[name])
        kept = weight.clone()
        weight.copy_(mean)
        mean.copy_(kept)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _require_finite(metrics: Mapping[str, float], name: str, step: int) -> None:
    loss = metrics.get(f"{name}/loss", 0.0)
    if not loss < float("inf"):
        raise TapRayError(f"The loss is {loss} after {step} steps. Lower --lr, or check the data for NaN.")
