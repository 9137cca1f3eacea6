"""Computes the context vector, which says what to do, from an instruction or from two crops. C channels.

Stage 1 gives a policy a crop of the object that will be touched next and one of the place where it will be put; Stage 2
gives an instruction instead. Both become a vector of the same size, so that all later layers are the same.
"""

import torch
from torch import Tensor, nn

from tap_ray.models.batch import Batch
from tap_ray.models.vision import GRAY, GRAY_STEP, jittered


class SentenceContext(nn.Module):
    """Token features of a sentence -> (U, C): each mixed, then their mean."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)

    def forward(self, token_ULD: Tensor, present_UL: Tensor) -> Tensor:
        """(U, C) from features of U sentences of L tokens; `present_UL` bool, False at padding."""
        present = present_UL[..., None].to(token_ULD.dtype)
        return (self.proj(token_ULD) * present).sum(1) / present.sum(1).clamp_min(1)


class CropContext(nn.Module):
    """Crops of object and place -> (N, C). One small CNN reads both; a learned vector replaces a missing crop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes, layers = (3, 32, 48, 64), []
        for before, after, stride in zip(sizes, sizes[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, after, 3 if stride == 1 else 4, stride, 1), nn.ReLU()]
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.object, self.place = nn.Linear(sizes[-1], width), nn.Linear(sizes[-1], width)
        self.absent = nn.Parameter(torch.zeros(2, width))

    def forward(self, batch: Batch) -> Tensor:
        """(N, C) from "object_crop", "place_crop" and "crop_mask"; with "jitter" crops change as their images do, since
        both show the same scene in the same light."""
        crops = torch.cat([batch["object_crop"], batch["place_crop"]]).permute(0, 3, 1, 2)
        kind = crops.device.type
        crops = crops.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.absent.dtype)
        if "jitter" in batch:
            crops = jittered(crops, batch["jitter"].repeat(2, 1))
        seen_N, seen_M = self.cnn((crops - GRAY) / GRAY_STEP).chunk(2)
        parts = (self.object(seen_N), self.place(seen_M))
        present = batch["crop_mask"][..., None]
        return sum(torch.where(present[:, i], part, self.absent[i]) for i, part in enumerate(parts))  # pyright: ignore[reportReturnType]
