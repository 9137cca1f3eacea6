"""Reach targets: the end effector's future pose as targets beside the actions, in play and in demonstrations.

R targets, NUM_REACH for each arm:

0 .. 2 its displacement over the next steps, 3 .. 5 the displacement to the next contact, 6 .. 8 the displacement to the
release after it; m, base frame. 9 .. 12 the gripper's yaw at the next grasp, absolute and relative to now, as cosines
and sines of twice the angle. They need no labels: recorded states give them (`dataset.reach.reach_targets`).
"""

from typing import Iterable

import numpy as np
import torch
from torch import Tensor

from tap_ray.dataset.reach import NUM_REACH
from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch, moved
from tap_ray.models.build import Network
from tap_ray.models.heads import masked_mse
from tap_ray.types import Window

REACH_NAMES = (
    *(f"{what}_{axis}" for what in ("move", "contact", "release") for axis in "xyz"),
    *(f"{what}_{part}" for what in ("yaw", "turn") for part in ("cos", "sin")),
)
"""Names of an arm's targets, in order, for metrics."""
LEAST = np.array([1e-3] * 9 + [0.3] * 4)
"""Smallest scale of each target: a millimeter; for cosines and sines half of their usual scale, because a small dataset
may show no grasp."""


def reach_loss(policy: Network, reach_NR: Tensor, batch: Batch, shown_N13: Tensor | None = None) -> Tensor:
    """Mean squared error of normalized reach targets, over those that exist and can be inferred from the context.

    Args:
        policy: model without DDP or compilation wrappers; its statistics normalize the targets.
        reach_NR: predicted, normalized.
        batch: "reach" (m) and "reach_mask".
        shown_N13: bool, the targets that the context determines; None: all.
    """
    return masked_mse(reach_NR, policy.reach_scale(batch["reach"]), shown_mask(batch, shown_N13))


def shown_mask(batch: Batch, shown_N13: Tensor | None) -> Tensor:
    """(N, R) bool: the reach targets that exist and, for each arm alike, are among those shown (None: all are)."""
    mask_NR = batch["reach_mask"]
    if shown_N13 is None:
        return mask_NR
    return mask_NR & moved(shown_N13, mask_NR.device).repeat(1, mask_NR.shape[1] // NUM_REACH)


def shown(crop_mask_N2: Tensor) -> Tensor:
    """(N, NUM_REACH) bool: the targets of each arm that the context determines.

    The displacement always; contact and yaws if there is a crop of the object; the release if there is one of the place
    too.
    """
    object_N1, place_N1 = crop_mask_N2[:, :1], crop_mask_N2[:, :1] & crop_mask_N2[:, 1:]
    ways = torch.cat([torch.ones_like(object_N1), object_N1, place_N1], dim=1).repeat_interleave(3, dim=1)
    return torch.cat([ways, object_N1.expand(-1, NUM_REACH - 9)], dim=1)


def reach_moments(windows: Iterable[Window]) -> tuple[list[float], list[float]]:
    """Offset 0 and root mean square (R,) of the reach targets, m, over the entries that exist.

    The offset stays 0, so that "no motion" is 0 in any dataset.
    """
    have = [w for w in windows if w.reach is not None and w.reach_mask is not None]
    if not have:
        raise ConfigError("A reach loss needs windows with reach targets. Set --windows.reach-steps to at least 1.")
    reach = np.concatenate([w.reach for w in have if w.reach is not None]).astype(np.float64)
    mask = np.concatenate([w.reach_mask for w in have if w.reach_mask is not None])
    square = np.where(mask, reach**2, 0).sum(0) / np.maximum(mask.sum(0), 1)
    return [0.0] * reach.shape[1], np.maximum(np.sqrt(square), np.resize(LEAST, reach.shape[1])).tolist()
