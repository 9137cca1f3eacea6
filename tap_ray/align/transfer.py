"""Taking over weights of Stage 1: what is taken, what is new and what stays behind is named, and nothing is silent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tap_ray.errors import ConfigError, nearest
from tap_ray.models.build import load_trained
from tap_ray.models.language import TextEncoder
from tap_ray.models.policy import TapPolicy
from tap_ray.models.vision import VisionTower
from tap_ray.models.weights import require_same
from tap_ray.training.stage import FINAL

Which = Literal["all", "vision", "all_but_head"]

CONTEXT = ("language.", "goal.", "mix.", "context_in.", "context_place")
"""Says what to do, differently in each stage: new in Stage 2."""

STAGE_1_ONLY = ("reach.", "reach_scale.")

OWN_STATISTICS = ("action_scale.", "state_scale.")
"""Each stage normalises with its own data."""

TAKEN: dict[Which, tuple[str, ...]] = {
    "all": ("vision.", "vision_in.", "place", "queries", "state_in.", "trunk.", "squeeze.", "head."),
    "all_but_head": ("vision.", "vision_in.", "place", "queries", "state_in.", "trunk."),
    "vision": ("vision.",),
}
"""Prefixes of what is taken over. "vision": the tower alone."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Names of tensors, in the model's order."""

    taken: tuple[str, ...]
    new: tuple[str, ...]
    left_behind: tuple[str, ...]


def init_from(policy: TapPolicy, run: Path, which: Which = "all") -> Transfer:
    """Fill `policy` with weights of the Stage 1 run `run`.

    The head's last layer is rescaled from the statistics of Stage 1 to those of `policy`, so that it predicts the same
    metres and radians as before.

    Raises:
        CheckpointError: the run is missing or cut off, or its policy has other sizes.
        ConfigError: an unknown `which`.
    """
    if which not in TAKEN:
        raise ConfigError(f"Unknown part {which!r} to take over. {nearest(which, TAKEN)}")
    source = load_trained(run / FINAL).policy
    have, want = source.state_dict(), policy.state_dict()
    taken = {name: value for name, value in want.items() if name.startswith(TAKEN[which])}
    require_same({n: v for n, v in have.items() if n.startswith(TAKEN[which])}, taken, where=f"Stage 1 run {run}")
    weights = {name: have[name] for name in taken}
    if "head.out.weight" in weights:
        weights |= _rescaled_head(source, policy)
    policy.load_state_dict({**want, **weights})
    return Transfer(
        taken=tuple(taken),
        new=tuple(name for name in want if name not in taken),
        left_behind=tuple(name for name in have if name not in taken),
    )


def learning_rates(which: Which, factor: float) -> dict[str, float]:
    """For `fit(lr_scale=...)`: `factor` on everything that `which` takes over."""
    return dict.fromkeys(TAKEN[which], factor) if factor != 1 else {}


def freeze(policy: TapPolicy, parts: tuple[str, ...]) -> None:
    """Stop the parts (e.g. "vision", "trunk") from changing, running statistics included.

    Raises:
        ConfigError: there is no such part.
    """
    children = dict(policy.named_children())
    for part in parts:
        if part not in children:
            raise ConfigError(f"Cannot freeze {part!r}. {nearest(part, children)}")
        child = children[part].requires_grad_(False)
        if isinstance(child, VisionTower | TextEncoder):
            child.frozen = True


@torch.no_grad()
def _rescaled_head(source: TapPolicy, target: TapPolicy) -> dict[str, Tensor]:
    """physical = y1 scale1 + offset1 = y2 scale2 + offset2, for every step of the chunk."""
    chunk = source.config.chunk
    ratio = (source.action_scale.scale / target.action_scale.scale).repeat(chunk)
    shift = ((source.action_scale.offset - target.action_scale.offset) / target.action_scale.scale).repeat(chunk)
    out = source.head.out
    return {"head.out.weight": out.weight * ratio[:, None], "head.out.bias": out.bias * ratio + shift}
