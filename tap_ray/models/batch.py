"""The inputs of networks: tensors of N samples on one device, under the names of `types.Window`. Those of an image-text
model are partly on the CPU (`VlmPolicy.on_cpu`).

Which keys there are follows from the policy's context and head, so none is required; a name that does not exist is
found by pyright. What belongs to play that is trained on beside demonstrations begins with "play_", see `of_play`.
"""

from typing import TypedDict, cast

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

PLAY = "play_"


class Images(TypedDict, total=False):
    """Images, and the changes that the model applies when it turns uint8 to floats, so that they stay small."""

    rgb: UInt8[Tensor, "N Y X 3"]
    """First camera, at t."""
    goal_rgb: UInt8[Tensor, "N Y X 3"]
    """First camera, at t + k."""
    goal_row: Int64[Tensor, "N"]
    """Row of `rgb` that is the image at t + k, instead of `goal_rgb`. On the CPU."""
    extra_rgb: UInt8[Tensor, "N V Y X 3"]
    """The V other cameras, at t."""
    goal_extra_rgb: UInt8[Tensor, "N V Y X 3"]
    """The V other cameras, at t + k."""
    jitter: Float[Tensor, "N 2"]
    """Relative change of contrast, and of brightness as a part of full scale."""
    extra_jitter: Float[Tensor, "N V 2"]
    """The same for the other cameras."""


class Crops(TypedDict, total=False):
    """Crops of the object that is touched next and of the place where it is released: the context of Stage 1."""

    object_crop: UInt8[Tensor, "N C C 3"]
    place_crop: UInt8[Tensor, "N C C 3"]
    crop_mask: Bool[Tensor, "N 2"]
    """Whether there is a crop of the object, and of the place."""
    crop_px: Float[Tensor, "N 2 2"]
    """Row and column of the object and of the place in `rgb`, px."""
    crop_px_mask: Bool[Tensor, "N 2"]
    """Whether they are there now."""


class Motion(TypedDict, total=False):
    """States and targets, in physical units."""

    state: Float[Tensor, "N S"]
    action: Float[Tensor, "N H A"]
    action_mask: Bool[Tensor, "N H"]
    """False where the chunk runs past the end of the episode."""
    k: Int64[Tensor, "N"]
    """Steps between the two images."""
    reach: Float[Tensor, "N R"]
    """Displacements of the end effector, m, base frame; see `models.reach`."""
    reach_mask: Bool[Tensor, "N R"]
    chunk_state: Float[Tensor, "N H S"]
    """State before each action of the chunk, for a motion prior."""
    past_action: Float[Tensor, "N P A"]
    past_state: Float[Tensor, "N P S"]
    past_mask: Bool[Tensor, "N P"]
    """False where the episode had not begun."""


class Play(TypedDict, total=False):
    """Images, crops and motion of play, M samples; see `of_play`."""

    play_rgb: UInt8[Tensor, "M Y X 3"]
    play_extra_rgb: UInt8[Tensor, "M V Y X 3"]
    play_jitter: Float[Tensor, "M 2"]
    play_extra_jitter: Float[Tensor, "M V 2"]
    play_object_crop: UInt8[Tensor, "M C C 3"]
    play_place_crop: UInt8[Tensor, "M C C 3"]
    play_crop_mask: Bool[Tensor, "M 2"]
    play_crop_px: Float[Tensor, "M 2 2"]
    play_crop_px_mask: Bool[Tensor, "M 2"]
    play_state: Float[Tensor, "M S"]
    play_action: Float[Tensor, "M H A"]
    play_action_mask: Bool[Tensor, "M H"]
    play_reach: Float[Tensor, "M R"]
    play_reach_mask: Bool[Tensor, "M R"]


class Batch(Images, Crops, Motion, Play, total=False):
    """A batch of a policy."""

    task_index: Int64[Tensor, "N"]
    """Of each sample, into the instructions of the dataset. On the CPU."""
    tokens: Int64[Tensor, "U L"]
    """Token ids of the U instructions of this batch, -1 at padding."""
    sentence: Int64[Tensor, "N"]
    """Row of `tokens` that is each sample's instruction."""
    noise: Float[Tensor, "N H A"]
    """What a flow head starts from when it acts; drawn where it is absent."""
    step: Int64[Tensor, ""]
    """Number of updates so far."""


class MotionBatch(TypedDict, total=False):
    """A batch of a motion prior: chunks of several robots, normalized, in the layout of `specs.UNIFIED_*`."""

    action: Float[Tensor, "N H A"]
    state: Float[Tensor, "N H S"]
    """Before each action."""
    step_mask: Bool[Tensor, "N H"]
    """False where the episode had not begun or was over."""
    dim_mask: Bool[Tensor, "N A"]
    """The robot's own action dimensions."""
    source: Int64[Tensor, "N"]
    """Number of the dataset."""
    step: Int64[Tensor, ""]
    """Number of updates so far."""


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting until a copy to a GPU has ended."""
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Kept:
    """A batch as the argument of a model that DDP or FSDP wraps: they move each tensor of a dict to the model's device,
    and what a processor reads on the CPU would have to be fetched again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


def of_play(batch: Batch) -> Batch:
    """The play in a batch, without the prefix of its keys; empty where there is none."""
    return cast(Batch, {name.removeprefix(PLAY): value for name, value in batch.items() if name.startswith(PLAY)})


def as_play(batch: Batch) -> Batch:
    """A batch of play as part of another batch: each key with the prefix."""
    return cast(Batch, {f"{PLAY}{name}": value for name, value in batch.items()})


def without(batch: Batch, *names: str) -> Batch:
    """The same batch without these keys."""
    return cast(Batch, {name: value for name, value in batch.items() if name not in names})
