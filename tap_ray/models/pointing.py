"""Trains the first two heat maps to lie on the object and the place of the crops. N batch, G grid.

A heat map with this direct supervision learns to find objects from far fewer images than one that is supervised only
through the actions.
"""

import torch
from torch import Tensor

from tap_ray.models.batch import Batch

POINT_WEIGHT = 0.3
"""Weight of this loss relative to those of actions and reach targets; it starts at about 5 nats, they at about 1
each."""


def pointing_loss(logprob_N2P: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the key points' heat maps, nats per key point; 0 if a batch has no crops.

    Args:
        logprob_N2P: log-probabilities of the G x G cells.
        batch: "crop_px" (row and column of the object and of the place), "crop_px_mask" (whether they are there),
            "rgb".
    """
    side, mask_N2 = round(logprob_N2P.shape[-1] ** 0.5), batch["crop_px_mask"]
    at = ((batch["crop_px"] + 0.5) * (side / batch["rgb"].shape[1]) - 0.5).clamp(0, side - 1)
    cell = torch.arange(side, device=at.device)
    near_N22G = (1 - (at[..., None] - cell).abs()).clamp_min(0)  # the two surrounding cells, whose mean is the position
    target_N2P = (near_N22G[:, :, 0, :, None] * near_N22G[:, :, 1, None, :]).flatten(2)
    loss_N2 = -(target_N2P * logprob_N2P.float()).sum(-1)
    return torch.where(mask_N2, loss_N2, 0.0).sum() / mask_N2.sum().clamp_min(1)
