"""Configures AdamW without weight decay of norms and biases, and the learning rate as a pure function of the step."""

import math
from typing import Iterable, Mapping

from torch import nn
from torch.optim import AdamW


def schedule(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """Factor on the learning rate at `step`: linear warm-up to 1, then half a cosine down to 0.

    Args:
        step: 0 .. num_steps - 1.
        num_steps: length of the run.
        warmup_fraction: part of the run spent warming up, [0, 1); 0 starts at full rate.

    Returns:
        Factor in (0, 1]; the first step is 1 / warm-up steps, so no step is wasted at rate 0.

    Source: Loshchilov & Hutter (2017), SGDR, eq. 5 without restarts.
    """
    warmup = round(num_steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    lr_scale: Mapping[str, float] | None = None,
) -> AdamW:
    """AdamW over the trainable parameters: matrices, kernels and embeddings decay; norms and biases (<= 1-D) do not.

    Args:
        model: its parameters with `requires_grad`.
        lr: peak learning rate; each group keeps its own peak under the key "peak_lr".
        weight_decay: weight decay of tensors with two or more dimensions.
        betas: decay rates of Adam's running averages.
        lr_scale: prefix of a parameter's name -> factor on its learning rate (the longest prefix wins).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, _scale_of(name, lr_scale or {})), []).append(parameter)
    return AdamW(
        [
            {"params": members, "weight_decay": decay, "peak_lr": lr * scale}
            for (decay, scale), members in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=lr,
        betas=betas,
        # Saves a third of the loop's time on CPUs; it needs moments in the memory layout of the parameters.
        fused=True,
    )


def set_learning_rate(optimizer: AdamW, factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def names_in_order(model: nn.Module, optimizer: AdamW) -> list[str]:
    """Names of the optimizer's parameters in the order in which its state numbers them."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for parameter in in_order(optimizer)]


def in_order(optimizer: AdamW) -> Iterable[nn.Parameter]:
    """The optimizer's parameters in the order in which its state numbers them."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _scale_of(name: str, scales: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in scales if name.startswith(prefix)]
    return scales[max(fitting, key=len)] if fitting else 1.0
