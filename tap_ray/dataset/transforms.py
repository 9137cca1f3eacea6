"""Frozen callables in inverse pairs; none changes its input."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tap_ray.dataset.norm_stats import SlotNorm


@dataclass(frozen=True)
class Normalise:
    """(..., D) physical units -> (..., D) float32 of order one."""

    norm: SlotNorm

    def __call__(self, values: np.ndarray) -> np.ndarray:
        offset, scale = self._arrays
        return ((values - offset) / scale).astype(np.float32)

    @property
    def inverse(self) -> "Unnormalise":
        """Undoes this one."""
        return Unnormalise(self.norm)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.norm.offset), np.array(self.norm.scale)


@dataclass(frozen=True)
class Unnormalise:
    """(..., D) of order one -> (..., D) float32 in physical units. Inverse of `Normalise`."""

    norm: SlotNorm

    def __call__(self, values: np.ndarray) -> np.ndarray:
        offset, scale = self._arrays
        return (values * scale + offset).astype(np.float32)

    @property
    def inverse(self) -> Normalise:
        """Undoes this one."""
        return Normalise(self.norm)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.norm.offset), np.array(self.norm.scale)
