"""Normalizes physical units and back. Offsets and scales are buffers of the model, saved with its weights."""

from typing import Any, Sequence

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
        self._on_cpu: tuple[Tensor, Tensor] | None = None

    def set(self, offset: Sequence[float], scale: Sequence[float]) -> None:
        """Set offset and scale, both (num,), in physical units."""
        self.offset.copy_(torch.as_tensor(offset, dtype=torch.float32))
        self.scale.copy_(torch.as_tensor(scale, dtype=torch.float32))
        self._on_cpu = None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._on_cpu = None

    def forward(self, physical: Tensor) -> Tensor:
        """(..., num) values in physical units -> (..., num) normalized, where they are: on the device or on the CPU."""
        if physical.device == self.offset.device:
            return (physical - self.offset) / self.scale
        if self._on_cpu is None:  # fetched once, so that no step waits for the device
            self._on_cpu = self.offset.cpu(), self.scale.cpu()
        offset, scale = self._on_cpu
        return (physical - offset) / scale

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """(..., num) normalized values -> (..., num) float32 in physical units."""
        return normalized.float() * self.scale + self.offset
