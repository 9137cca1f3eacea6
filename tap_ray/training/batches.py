"""From a NumPy `Window` to tensors on the trainer's device, and the light augmentation there.

A batch is a dict with the fields of `types.Window` that are present, batch first, under the same names:
    rgb, goal_rgb  (N, Y, X, 3) uint8     action (N, H, A) float32     action_mask (N, H) bool
    k, task_index  (N,) int64             state  (N, S) float32        reach, reach_mask (N, R)
    chunk_state, past_action, past_state (N, H or P, ...) float32, past_mask (N, P) bool: only for motion priors
The training loop adds "step" () int64, how many updates came before. Augmentation adds "jitter" (N, 2) float32:
contrast and brightness that the model applies when it turns uint8 to floats, so that images stay small until then.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tap_ray.rng import seed_of
from tap_ray.types import Motion, Window

IMAGES = ("rgb", "goal_rgb")
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, the same for both frames of a pair."""

    shift_px: int = 0
    """Largest shift along each image axis, px, edge pixels repeated; 0 turns it off."""
    jitter: float = 0.0
    """Largest relative change of contrast, and of brightness as a part of full scale; 0 turns it off."""


def to_tensors(window: Window | Motion, device: torch.device) -> Batch:
    """The window's arrays as tensors on `device`; fields that are None are left out."""
    arrays = {field.name: getattr(window, field.name) for field in dataclasses.fields(window)}
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays.items()
        if array is not None
    }


def augment(batch: Batch, config: AugmentConfig, *, seed: int, step: int, rank: int) -> Batch:
    """Shift and jitter the images of one batch; a pure function of its arguments, so that resuming is exact."""
    if not config.shift_px and not config.jitter:
        return batch
    generator = torch.Generator().manual_seed(seed_of(seed, "augment", step, rank))
    num, device = len(batch["rgb"]), batch["rgb"].device
    changed = dict(batch)
    if config.shift_px:
        low, high = -config.shift_px, config.shift_px + 1
        shift_N2 = torch.randint(low, high, (num, 2), generator=generator).to(device)
        changed |= {name: _shift(batch[name], shift_N2) for name in batch if name in IMAGES}
    if config.jitter:
        changed["jitter"] = ((torch.rand(num, 2, generator=generator) * 2 - 1) * config.jitter).to(device)
    return changed


def _shift(rgb_NYXC: Tensor, shift_N2: Tensor) -> Tensor:
    """Move each image by its own whole number of pixels (rows, columns), repeating the edge."""
    num, size_y, size_x, channels = rgb_NYXC.shape
    rows = (torch.arange(size_y, device=rgb_NYXC.device) + shift_N2[:, :1]).clamp_(0, size_y - 1)
    columns = (torch.arange(size_x, device=rgb_NYXC.device) + shift_N2[:, 1:]).clamp_(0, size_x - 1)
    pixel = (rows[:, :, None] * size_x + columns[:, None, :]).reshape(num, -1, 1).expand(-1, -1, channels)
    return rgb_NYXC.reshape(num, -1, channels).gather(1, pixel).reshape(rgb_NYXC.shape)
