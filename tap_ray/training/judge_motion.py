"""Judging a motion prior on held-out motion: how well it is rebuilt from its latent."""

from typing import Sequence

import numpy as np
import torch

from tap_ray.metrics import r_squared
from tap_ray.models.motion_prior import MotionPrior
from tap_ray.specs import UNIFIED_ACTION, RobotSpec, unified_places
from tap_ray.training.batches import to_tensors
from tap_ray.types import Motion

MOVES = 0.05
"""Smallest standard deviation (normalized) at which an R^2 is reported."""


@torch.no_grad()
def encoded(prior: MotionPrior, motion: Motion) -> torch.Tensor:
    """(N, L) latents of a batch."""
    batch = to_tensors(motion, next(prior.parameters()).device)
    return prior.encoder(batch["action"], batch["state"], batch["step_mask"])


@torch.no_grad()
def rebuild(prior: MotionPrior, motion: Motion, *, num_steps: int | None = None, seed: int = 0) -> np.ndarray:
    """(N, H, A) normalized actions rebuilt from the latents of a batch; the noise follows from `seed`."""
    latent = encoded(prior, motion)
    noise = torch.randn(motion.action.shape, generator=torch.Generator().manual_seed(seed)).to(latent.device)
    place_mask = torch.from_numpy(motion.place_mask).to(latent.device)
    return prior.decoder.sample(latent, place_mask, noise, num_steps).cpu().numpy()


def reconstruction(
    prior: MotionPrior, motions: Sequence[Motion], spec: RobotSpec, *, num_steps: int | None = None
) -> dict[str, float]:
    """R^2 of each slot of motion rebuilt from its latent; slots that hardly move are left out."""
    places = list(unified_places(spec.action, UNIFIED_ACTION))
    guess = np.concatenate([rebuild(prior, motion, num_steps=num_steps) for motion in motions])[:, :, places]
    truth = np.concatenate([motion.action for motion in motions])[:, :, places]
    r2 = r_squared(guess.reshape(-1, len(places)), truth.reshape(-1, len(places)), min_std=MOVES)
    return {slot.name: float(value) for slot, value in zip(spec.action, r2, strict=True) if np.isfinite(value)}
