"""Computes normalization statistics: one offset and scale per slot, from a dataset's stats.json, saved with the
weights.

The action's gripper stays as it is: it is already +1 or -1, and dividing by its deviation would make its size depend on
how often the gripper is opened in a dataset. A slot that hardly changes is divided by 1 % of its range in the spec and
not by its deviation, so that its noise is not amplified; a constant becomes 0.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from tap_ray.dataset.layout import ACTION, STATE
from tap_ray.errors import DataError
from tap_ray.runs import require_keys
from tap_ray.specs import RobotSpec, Slot

MIN_SCALE = 0.01
"""Smallest scale, as a share of a slot's range in the spec."""


@dataclass(frozen=True, kw_only=True)
class SlotNorm:
    """Offset and scale of each slot: normalized = (value - offset) / scale."""

    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """(..., slots) float32 physical values -> numbers of order one."""
        return (values - np.asarray(self.offset, np.float32)) / np.asarray(self.scale, np.float32)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """(..., slots) float32 normalized values -> physical values; inverse of `normalize`."""
        return values * np.asarray(self.scale, np.float32) + np.asarray(self.offset, np.float32)


@dataclass(frozen=True, kw_only=True)
class NormStats:
    """The statistics that give a robot's numbers mean 0 and standard deviation 1."""

    state: SlotNorm
    action: SlotNorm

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: Path | str = "the normalization") -> "NormStats":
        """Inverse of `to_json`; a CheckpointError names `where` and what is missing."""
        require_keys(data, ("state", "action"), where)
        for name in ("state", "action"):
            require_keys(data[name], ("names", "offset", "scale"), f"{where}: {name}")
        parts = {
            name: SlotNorm(**{key: tuple(values) for key, values in data[name].items()}) for name in ("state", "action")
        }
        return cls(**parts)


def norm_stats(stats: Mapping[str, Mapping[str, np.ndarray]], spec: RobotSpec) -> NormStats:
    """Normalization statistics from a dataset's statistics.

    Args:
        stats: `DatasetInfo.stats`.
        spec: `DatasetInfo.spec`.

    Raises:
        DataError: statistics are missing, of another length, or not finite, or the dataset is a video without actions.
            Nothing is assumed instead.
    """
    if not spec.action:
        raise DataError(
            "The dataset is a video without actions, so no policy can be trained on it. Label it with the actions "
            "that an inverse-dynamics model predicts (jobs.label), and train on the labeled dataset."
        )
    return NormStats(
        state=_slot_norm(stats, STATE, spec.state, keep=()),
        action=_slot_norm(stats, ACTION, spec.action, keep=spec.grippers),
    )


def _slot_norm(
    stats: Mapping[str, Mapping[str, np.ndarray]],
    feature: str,
    slots: tuple[Slot, ...],
    *,
    keep: tuple[int, ...],
) -> SlotNorm:
    keys = ("mean", "std")
    values = [np.asarray(stats.get(feature, {}).get(key, ()), np.float64) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if value.shape != (len(slots),) or not np.isfinite(value).all():
            raise DataError(
                f"The dataset's statistics of {feature!r} give {key} = {value.tolist()}; expected {len(slots)} finite "
                "numbers. `python -m tap_ray.dataset.lerobot verify PATH --repair` writes stats.json again."
            )
    mean, std = values
    scale = np.maximum(std, MIN_SCALE * np.array([slot.high - slot.low for slot in slots]))
    kept = np.isin(np.arange(len(slots)), keep)
    return SlotNorm(
        names=tuple(slot.name for slot in slots),
        offset=tuple(np.where(kept, 0.0, mean).tolist()),
        scale=tuple(np.where(kept, 1.0, scale).tolist()),
    )
