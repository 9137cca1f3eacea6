"""Converts a NumPy `Window` to tensors on the trainer's device, and augments images where they are."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Collection, Literal, cast, overload

import torch
from torch import Tensor

from tap_ray.models.batch import Batch, MotionBatch, as_play, moved, of_play
from tap_ray.rng import seed_of
from tap_ray.types import ActionChunkBatch, Window

CROPS: tuple[Literal["object_crop"], Literal["place_crop"]] = ("object_crop", "place_crop")
ON_CPU = ("task_index", "goal_row")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, the same for both frames of a pair, another for each camera; crops have
    the jitter of their image, and are mirrored, each by itself."""

    shift_px: int = 4
    """Largest shift along each image axis, px, with edge pixels repeated; 0 turns it off."""
    jitter: float = 0.0
    """Largest relative change of contrast, and of brightness as a part of full scale; 0 turns it off."""


@overload
def to_tensors(window: Window, device: torch.device, on_cpu: Collection[str] = ()) -> Batch: ...
@overload
def to_tensors(window: ActionChunkBatch, device: torch.device, on_cpu: Collection[str] = ()) -> MotionBatch: ...
def to_tensors(
    window: Window | ActionChunkBatch, device: torch.device, on_cpu: Collection[str] = ()
) -> Batch | MotionBatch:
    """The window's arrays as tensors on `device`; those that are None are omitted.

    `task_index` and `goal_row` stay on the CPU: they say which rows and instructions belong together, and code that
    reads them must not wait for a GPU. So do the fields `on_cpu` (`VlmPolicy.on_cpu`).
    """
    batch: dict[str, Tensor] = {}
    for field in dataclasses.fields(window):
        value = getattr(window, field.name)
        if isinstance(value, Window):
            batch |= cast(dict[str, Tensor], as_play(to_tensors(value, device, on_cpu)))
        elif value is not None:
            tensor = torch.from_numpy(value)
            batch[field.name] = tensor if field.name in (*ON_CPU, *on_cpu) else moved(tensor, device)
    return cast(Batch, batch)


@overload
def to_tensors_beside(window: Window, device: torch.device, on_cpu: Collection[str] = ()) -> Batch: ...
@overload
def to_tensors_beside(window: ActionChunkBatch, device: torch.device, on_cpu: Collection[str] = ()) -> MotionBatch: ...
def to_tensors_beside(
    window: Window | ActionChunkBatch, device: torch.device, on_cpu: Collection[str] = ()
) -> Batch | MotionBatch:
    """`to_tensors`; to a GPU in a stream of its own, so that it copies while the step before still computes."""
    if device.type != "cuda":
        return to_tensors(window, device, on_cpu)
    computes, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        batch = to_tensors(window, device, on_cpu)
    computes.wait_stream(copies)
    for tensor in cast(dict[str, Tensor], batch).values():
        if tensor.is_cuda:
            tensor.record_stream(computes)  # its memory is not given to the next copy before it has been read
    return batch


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def augment(batch: Batch, config: AugmentConfig, *, seed: int, step: int, rank: int) -> Batch:
    """Shift and jitter the images of one batch; a pure function of its arguments, so that resuming is exact."""
    if not config.shift_px and not config.jitter:
        return batch
    generator = torch.Generator().manual_seed(seed_of(seed, "augment", step, rank))
    changed = batch | _augmented(batch, config, generator)
    if "play_rgb" in batch:
        changed.update(as_play(_augmented(of_play(batch), config, generator)))
    return changed


def _augmented(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """The augmented entries of a batch."""
    changed: Batch = {}
    num, device = len(batch["rgb"]), batch["rgb"].device
    alike_N = _alike(batch)
    if config.shift_px:
        low, high = -config.shift_px, config.shift_px + 1
        shift_N2 = moved(torch.randint(low, high, (num, 2), generator=generator)[alike_N], device)
        for name in ("rgb", "goal_rgb"):
            if name in batch:
                changed[name] = shift_images(batch[name], shift_N2)
        if "crop_px" in batch:
            shifted = (batch["crop_px"] - shift_N2[:, None]).unbind(-1)
            inside = [px.clamp(0, size - 1) for px, size in zip(shifted, batch["rgb"].shape[1:3], strict=True)]
            changed["crop_px"] = torch.stack(inside, dim=-1)
    if config.jitter:
        jitter_N2 = (torch.rand(num, 2, generator=generator) * 2 - 1) * config.jitter
        changed["jitter"] = moved(jitter_N2[alike_N], device)
    if "extra_rgb" in batch:
        changed.update(_extra_augmented(batch, config, generator, alike_N))
    for name in CROPS:
        if name in batch:
            mirrored_N = moved(torch.rand(num, generator=generator) < 0.5, device)
            changed[name] = torch.where(mirrored_N[:, None, None, None], batch[name].flip(2), batch[name])
    return changed


def _extra_augmented(batch: Batch, config: AugmentConfig, generator: torch.Generator, alike_N: Tensor) -> Batch:
    """Each of the other cameras by a shift and a jitter of its own, the same for both frames of a pair."""
    changed: Batch = {}
    num, cameras = batch["extra_rgb"].shape[:2]
    device = batch["extra_rgb"].device
    if config.shift_px:
        low, high = -config.shift_px, config.shift_px + 1
        shift_NV2 = moved(torch.randint(low, high, (num, cameras, 2), generator=generator)[alike_N], device)
        for name in ("extra_rgb", "goal_extra_rgb"):
            if name in batch:
                shifted = shift_images(batch[name].flatten(0, 1), shift_NV2.flatten(0, 1))
                changed[name] = shifted.unflatten(0, (num, cameras))
    if config.jitter:
        jitter_NV2 = (torch.rand(num, cameras, 2, generator=generator) * 2 - 1) * config.jitter
        changed["extra_jitter"] = moved(jitter_NV2[alike_N], device)
    return changed


def _alike(batch: Batch) -> Tensor:
    """(N,) row whose random change each row takes: the first of its segment, since its frames form pairs."""
    row_N = torch.arange(len(batch["rgb"]))
    if "goal_row" not in batch:
        return row_N
    last_N = batch["goal_row"] == row_N
    first_N = torch.cat([last_N.new_ones(1), last_N[:-1]])
    return torch.where(first_N, row_N, 0).cummax(0).values


def shift_images(rgb_NYXC: Tensor, shift_N2: Tensor) -> Tensor:
    """Move each image by its own whole number of pixels (rows, columns), repeating the edge."""
    num, size_y, size_x, channels = rgb_NYXC.shape
    rows = (torch.arange(size_y, device=rgb_NYXC.device) + shift_N2[:, :1]).clamp_(0, size_y - 1)
    columns = (torch.arange(size_x, device=rgb_NYXC.device) + shift_N2[:, 1:]).clamp_(0, size_x - 1)
    pixel = (rows[:, :, None] * size_x + columns[:, None, :]).reshape(num, -1, 1).expand(-1, -1, channels)
    return rgb_NYXC.reshape(num, -1, channels).gather(1, pixel).reshape(rgb_NYXC.shape)
