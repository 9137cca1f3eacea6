"""Loads weights of Stage 1 and reports which tensors were loaded, which are new and which were not used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tap_ray.errors import ConfigError, nearest
from tap_ray.models.build import Network, load_bundle
from tap_ray.models.heads import FlowHead, RegressionHead
from tap_ray.models.lora import is_update, renamed
from tap_ray.models.motion_prior import MotionPrior
from tap_ray.models.vlm import VlmPolicy
from tap_ray.models.weights import require_same
from tap_ray.training.stage import FINAL

TransferParts = Literal["all", "vision", "all_but_head"]

VISION_PARTS = ("vision.", "join.", "keypoints.", "glimpse.", "cameras.", "model.", "mix.")
ACTION_PARTS = ("context_in.", "crops.", "state_in.", "readout.", "head.", "reach.", "reach_scale.")
LOADED: dict[TransferParts, tuple[str, ...]] = {
    "all": (*VISION_PARTS, *ACTION_PARTS),
    "all_but_head": (*VISION_PARTS, "context_in.", "crops.", "state_in."),
    "vision": ("vision.",),
}
"""Prefixes of the tensors that are loaded, if both stages have them. "vision" means the first camera's tower alone."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Names of the tensors that were loaded, are new, or were not used, in the model's order. The language encoder is
    always new, and each stage normalizes with its own data."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"loaded": self.loaded, "new": self.new, "unused": self.unused}
        named = {role: ", ".join(dict.fromkeys(name.split(".")[0] for name in names)) for role, names in parts.items()}
        return "; ".join(f"{role}: {names or 'nothing'}" for role, names in named.items())


def init_from(policy: Network, run: Path, which: TransferParts = "all", *, source: Network | None = None) -> Transfer:
    """Copy weights of the Stage 1 run `run` into `policy`; `source` is that run's policy if it has been read already.

    The head's last layer is rescaled from the statistics of Stage 1 to those of `policy`, so that it predicts the same
    meters and radians as before; so is the layer that reads the state. A longer chunk repeats Stage 1's last step.
    Parameters that only one of the two has stay as they are: a flow head is new, inverse dynamics has no readout of a
    single image, layers for crops and reach targets are not used if Stage 2 has neither, and layers that read a history
    are new.

    Raises:
        CheckpointError: the run is missing or truncated, or its policy has other sizes.
        ConfigError: an unknown `which`.
    """
    if which not in LOADED:
        raise ConfigError(f"Unknown part {which!r} to load. {nearest(which, LOADED)}")
    if which == "vision" and isinstance(policy, VlmPolicy):
        raise ConfigError('--align.load of a VLM policy is "all" or "all_but_head": its vision tower is part of it.')
    source = source or load_bundle(run / FINAL).network
    have, want = renamed(source.state_dict(), policy), policy.state_dict()
    both = [part for part in LOADED[which] if _has(have, part) and _has(want, part)]
    parts = tuple(part for part in both if part != "head." or policy.config.head == source.config.head)
    loaded = {name: value for name, value in want.items() if name.startswith(parts) and not is_update(name)}
    weights = {name: value for name, value in have.items() if name.startswith(parts)}
    if "head.out.weight" in weights and policy.config.head == "regression":
        weights |= _rescaled_head(source, policy)
    if "state_in.weight" in weights:
        weights |= _rescaled_state(source, policy)
    if "readout.0.weight" in weights:  # a history, which Stage 1 does not have, comes last in the input
        readout = weights["readout.0.weight"]
        weights["readout.0.weight"] = torch.cat([readout, want["readout.0.weight"][:, readout.shape[1] :]], dim=1)
    require_same(weights, loaded, where=f"Stage 1 run {run}")
    policy.load_state_dict({**want, **weights})
    return Transfer(
        loaded=tuple(loaded),
        new=tuple(name for name in want if name not in loaded),
        unused=tuple(name for name in have if name not in loaded),
    )


def _has(weights: dict[str, Tensor], part: str) -> bool:
    return any(name.startswith(part) for name in weights)


def load_prior_weights(policy: Network, prior: MotionPrior) -> None:
    """Copy the encoder and decoder of a motion prior into the flow head of `policy`.

    Raises:
        ConfigError: the policy has no flow head, or one of another size.
    """
    if not isinstance(policy.head, FlowHead) or policy.head.prior.config != prior.config:
        raise ConfigError("With --prior the flow head has the sizes of the prior. Omit --policy.prior.*.")
    policy.head.prior.load_state_dict(prior.state_dict())


def learning_rates(transfer: Transfer, factor: float) -> dict[str, float]:
    """The `lr_scale` argument of `fit`: `factor` for every parameter that was loaded."""
    return dict.fromkeys(transfer.loaded, factor) if factor != 1 else {}


def freeze(policy: Network, parts: tuple[str, ...]) -> None:
    """Freeze each of these parts, see `TapPolicy.freeze`.

    Raises:
        ConfigError: there is no such part.
    """
    for part in parts:
        if part not in dict(policy.named_children()):
            raise ConfigError(f"Cannot freeze {part!r}. {nearest(part, dict(policy.named_children()))}")
        policy.freeze(part)


@torch.no_grad()
def _rescaled_head(source: Network, target: Network) -> dict[str, Tensor]:
    """Rescale the last layer so that physical = y1 scale1 + offset1 = y2 scale2 + offset2 for every step of the
    chunk."""
    assert isinstance(source.head, RegressionHead)
    step_H = torch.arange(target.config.chunk).clamp_max(source.config.chunk - 1)
    shape = (source.config.chunk, source.config.num_actions)
    weight_HAW = source.head.out.weight.unflatten(0, shape)[step_H]
    bias_HA = source.head.out.bias.unflatten(0, shape)[step_H]
    old, new = source.action_scale, target.action_scale
    ratio_A, shift_A = old.scale / new.scale, (old.offset - new.offset) / new.scale
    return {
        "head.out.weight": (weight_HAW * ratio_A[:, None]).flatten(0, 1),
        "head.out.bias": (bias_HA * ratio_A + shift_A).flatten(),
    }


@torch.no_grad()
def _rescaled_state(source: Network, target: Network) -> dict[str, Tensor]:
    """Rescale the layer so that it gets x1 = (physical - offset1) / scale1 from x2 = (physical - offset2) / scale2."""
    layer, old, new = source.state_in, source.state_scale, target.state_scale
    shift_S = (new.offset - old.offset) / old.scale
    return {
        "state_in.weight": layer.weight * (new.scale / old.scale),
        "state_in.bias": layer.bias + layer.weight @ shift_S,
    }
