"""From a NumPy `Window` to tensors on the trainer's device, and the light augmentation there.

A batch is a dict with the fields of `types.Window` that are present, batch first, under the same names:
    rgb, goal_rgb  (N, Y, X, 3) uint8     action (N, H, A) float32     action_mask (N, H) bool
    extra_rgb, goal_extra_rgb (N, V, Y, X, 3) uint8: the other cameras, where there are any
    k, task_index, goal_row (N,) int64    state  (N, S) float32        reach, reach_mask (N, R)
    object_crop, place_crop (N, y, x, 3) uint8   crop_mask (N, 2) bool: Stage 1's context
    play_rgb, play_action ...  the same of the play beside demonstrations (`Window.play`)
    chunk_state, past_action, past_state (N, H or P, ...) float32, past_mask (N, P) bool: only for motion priors
task_index and goal_row stay on the CPU: they say which rows and instructions belong together, and whoever reads them
must not wait for a GPU. The training loop adds "step" () int64, the number of updates so far. Augmentation adds
"jitter" (N, 2) float32: contrast and brightness that the model applies when it turns uint8 to floats, so that images
stay small until then; "extra_jitter" (N, V, 2) is that of the other cameras.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tap_ray.rng import seed_of
from tap_ray.types import ActionChunkBatch, Window

CROPS = ("object_crop", "place_crop")
ON_CPU = ("task_index", "goal_row")
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, the same for both frames of a pair, another for each camera; crops are
    mirrored, each by itself."""

    shift_px: int = 4
    """Largest shift along each image axis, px, with edge pixels repeated; 0 turns it off."""
    jitter: float = 0.0
    """Largest relative change of contrast, and of brightness as a part of full scale; 0 turns it off."""


def to_tensors(window: Window | ActionChunkBatch, device: torch.device) -> Batch:
    """The window's arrays as tensors on `device`; fields that are None are left out, those of `play` begin with it."""
    batch: Batch = {}
    for field in dataclasses.fields(window):
        value = getattr(window, field.name)
        if isinstance(value, Window):
            batch |= {f"{field.name}_{name}": tensor for name, tensor in to_tensors(value, device).items()}
        elif value is not None:
            tensor = torch.from_numpy(value)
            batch[field.name] = tensor if field.name in ON_CPU else _moved(tensor, device)
    return batch


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting until a copy to a GPU has ended."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def augment(batch: Batch, config: AugmentConfig, *, seed: int, step: int, rank: int) -> Batch:
    """Shift and jitter the images of one batch; a pure function of its arguments, so that resuming is exact."""
    if not config.shift_px and not config.jitter:
        return batch
    generator = torch.Generator().manual_seed(seed_of(seed, "augment", step, rank))
    changed = dict(batch)
    for prefix in [prefix for prefix in ("", "play_") if f"{prefix}rgb" in batch]:
        changed |= _augmented(batch, prefix, config, generator)
    return changed


def _augmented(batch: Batch, prefix: str, config: AugmentConfig, generator: torch.Generator) -> Batch:
    rgb, changed = batch[f"{prefix}rgb"], {}
    num, device = len(rgb), rgb.device
    alike_N = _alike(batch, prefix)
    if config.shift_px:
        low, high = -config.shift_px, config.shift_px + 1
        shift_N2 = _moved(torch.randint(low, high, (num, 2), generator=generator)[alike_N], device)
        images = [name for name in (f"{prefix}rgb", f"{prefix}goal_rgb") if name in batch]
        changed |= {name: shift_images(batch[name], shift_N2) for name in images}
        if f"{prefix}crop_px" in batch:
            size = torch.tensor(rgb.shape[1:3], device=device)
            moved = batch[f"{prefix}crop_px"] - shift_N2[:, None]
            changed[f"{prefix}crop_px"] = moved.clamp_min(0).minimum(size - 1)
    if config.jitter:
        jitter_N2 = (torch.rand(num, 2, generator=generator) * 2 - 1) * config.jitter
        changed[f"{prefix}jitter"] = _moved(jitter_N2[alike_N], device)
    if f"{prefix}extra_rgb" in batch:
        changed |= _extra_augmented(batch, prefix, config, generator, alike_N)
    for name in (f"{prefix}{crop}" for crop in CROPS if f"{prefix}{crop}" in batch):
        mirrored_N = _moved(torch.rand(num, generator=generator) < 0.5, device)
        changed[name] = torch.where(mirrored_N[:, None, None, None], batch[name].flip(2), batch[name])
    return changed


def _extra_augmented(
    batch: Batch, prefix: str, config: AugmentConfig, generator: torch.Generator, alike_N: Tensor
) -> Batch:
    """Each of the other cameras by a shift and a jitter of its own, the same for both frames of a pair."""
    changed: Batch = {}
    num, cameras = batch[f"{prefix}extra_rgb"].shape[:2]
    device = batch[f"{prefix}extra_rgb"].device
    if config.shift_px:
        low, high = -config.shift_px, config.shift_px + 1
        shift_NV2 = _moved(torch.randint(low, high, (num, cameras, 2), generator=generator)[alike_N], device)
        for name in (f"{prefix}extra_rgb", f"{prefix}goal_extra_rgb"):
            if name in batch:
                moved = shift_images(batch[name].flatten(0, 1), shift_NV2.flatten(0, 1))
                changed[name] = moved.unflatten(0, (num, cameras))
    if config.jitter:
        jitter_NV2 = (torch.rand(num, cameras, 2, generator=generator) * 2 - 1) * config.jitter
        changed[f"{prefix}extra_jitter"] = _moved(jitter_NV2[alike_N], device)
    return changed


def _alike(batch: Batch, prefix: str) -> Tensor:
    """(N,) row whose random change each row takes: the first of its segment, since its frames form pairs."""
    row_N = torch.arange(len(batch[f"{prefix}rgb"]))
    if f"{prefix}goal_row" not in batch:
        return row_N
    last_N = batch[f"{prefix}goal_row"] == row_N
    first_N = torch.cat([last_N.new_ones(1), last_N[:-1]])
    return torch.where(first_N, row_N, 0).cummax(0).values


def shift_images(rgb_NYXC: Tensor, shift_N2: Tensor) -> Tensor:
    """Move each image by its own whole number of pixels (rows, columns), repeating the edge."""
    num, size_y, size_x, channels = rgb_NYXC.shape
    rows = (torch.arange(size_y, device=rgb_NYXC.device) + shift_N2[:, :1]).clamp_(0, size_y - 1)
    columns = (torch.arange(size_x, device=rgb_NYXC.device) + shift_N2[:, 1:]).clamp_(0, size_x - 1)
    pixel = (rows[:, :, None] * size_x + columns[:, None, :]).reshape(num, -1, 1).expand(-1, -1, channels)
    return rgb_NYXC.reshape(num, -1, channels).gather(1, pixel).reshape(rgb_NYXC.shape)
