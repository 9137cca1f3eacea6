"""Validates a motion prior on held-out motion: how well chunks are reconstructed from their latent."""

from functools import partial
from typing import Sequence

import numpy as np
import torch

from tap_ray.metrics import r_squared
from tap_ray.models.motion_prior import MotionPrior
from tap_ray.specs import UNIFIED_ACTION, RobotSpec, unified_indices
from tap_ray.training.batches import to_tensors
from tap_ray.training.sharding import Each
from tap_ray.types import ActionChunkBatch

MOVES = 0.05
"""Smallest standard deviation (normalized) at which an R^2 is reported."""


@torch.no_grad()
def encoded(prior: MotionPrior, chunks: ActionChunkBatch) -> torch.Tensor:
    """(N, L) latents of a batch."""
    batch = to_tensors(chunks, next(prior.parameters()).device)
    return prior.encoder(batch["action"], batch["state"], batch["step_mask"])


@torch.no_grad()
def rebuild(prior: MotionPrior, chunks: ActionChunkBatch, *, num_steps: int | None = None, seed: int = 0) -> np.ndarray:
    """(N, H, A) normalized actions rebuilt from the latents of a batch; the noise follows from `seed`."""
    latent = encoded(prior, chunks)
    noise = torch.randn(chunks.action.shape, generator=torch.Generator().manual_seed(seed)).to(latent.device)
    dim_mask = torch.from_numpy(chunks.dim_mask).to(latent.device)
    return prior.decoder.sample(latent, dim_mask, noise, num_steps).cpu().numpy()


def reconstruction(
    prior: MotionPrior,
    batches: Sequence[ActionChunkBatch],
    spec: RobotSpec,
    *,
    num_steps: int | None = None,
    each: Each = map,
) -> dict[str, float]:
    """R^2 of each slot of motion rebuilt from its latent; slots that hardly move are left out."""
    dims = list(unified_indices(spec.action, UNIFIED_ACTION))
    guess = np.concatenate(list(each(partial(rebuild, prior, num_steps=num_steps), batches)))[:, :, dims]
    truth = np.concatenate([chunks.action for chunks in batches])[:, :, dims]
    r2 = r_squared(guess.reshape(-1, len(dims)), truth.reshape(-1, len(dims)), min_std=MOVES)
    return {slot.name: float(value) for slot, value in zip(spec.action, r2, strict=True) if np.isfinite(value)}
