"""Normalizes physical units and back. Offsets and scales are buffers of the model, saved with its weights."""

from typing import Sequence

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """x -> (x - offset) / scale, slot by slot; the identity until `set`."""

    offset: Tensor
    scale: Tensor

    def __init__(self, num: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(num))
        self.register_buffer("scale", torch.ones(num))

    def set(self, offset: Sequence[float], scale: Sequence[float]) -> None:
        """Set offset and scale, both (num,), in physical units."""
        self.offset.copy_(torch.as_tensor(offset, dtype=torch.float32))
        self.scale.copy_(torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, physical: Tensor) -> Tensor:
        """(..., num) values in physical units -> (..., num) normalized."""
        return (physical - self.offset) / self.scale

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """(..., num) normalized values -> (..., num) float32 in physical units."""
        return normalized.float() * self.scale + self.offset
