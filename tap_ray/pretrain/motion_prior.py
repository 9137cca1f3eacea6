"""Trains a motion prior (Stage 1): reconstruct an action chunk from one latent (arXiv 2606.26095). No images, no
language.

    L = E_t || v(x_t, t, z) - (a - e) ||^2,   z = encoder(s, a, s, a, ...),   x_t = (1 - t) e + t a

over the dims that a robot has. Robots share one layout (specs.UNIFIED_*), each normalized by its own statistics.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_ray.config import to_dict
from tap_ray.dataset.action_chunks import ActionChunkConfig, held_out_batches, load
from tap_ray.dataset.reader import DatasetInfo
from tap_ray.errors import DataError
from tap_ray.models.batch import MotionBatch
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.prior_files import Source, TrainedPrior, save_prior
from tap_ray.training.accumulation import shared
from tap_ray.training.motion_validation import reconstruction
from tap_ray.training.sharding import Each
from tap_ray.training.stage import FINAL
from tap_ray.types import ActionChunkBatch

HELD_OUT = 2048
"""Number of held-out chunks of each robot."""


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The objective; `fit` calls its loss."""

    name: str = "prior"

    def loss(self, model: nn.Module, batch: MotionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss, and "prior/loss", the squared error of the normalized velocity."""
        loss = shared(batch, "loss", model(batch)["loss"])
        return loss, {"prior/loss": loss}

    def counts(self, batch: MotionBatch) -> dict[str, Tensor]:
        """See `accumulation.Counted`."""
        return {"loss": (batch["step_mask"].sum(1) * batch["dim_mask"].sum(1)).sum()}


@dataclass(frozen=True, kw_only=True)
class PriorStage:
    """The prior, ready for `fit`."""

    network: MotionPrior
    sources: Sequence[Source]
    held_out: Sequence[Sequence[ActionChunkBatch]]
    """Held-out batches of each source."""
    objective: FlowMatching = field(default_factory=FlowMatching)
    lr_scale: dict[str, float] = field(default_factory=dict)

    def validate(self, *, each: Each = map) -> dict[str, float]:
        """The result of `reconstruction` for each robot, "prior/<robot>_r2_<slot>" and the mean over its slots."""
        metrics: dict[str, float] = {}
        for source, motions in zip(self.sources, self.held_out, strict=True):
            if not motions:
                continue
            robot = source.spec.robot
            r2 = reconstruction(self.network, motions, source.spec, each=each)
            metrics |= {f"prior/{robot}_r2_{slot}": value for slot, value in r2.items()}
            metrics[f"prior/{robot}_r2"] = float(np.mean(list(r2.values())))
        return metrics

    def metadata(self) -> dict[str, Any]:
        """For `Hooks.metadata`: what must be equal when training resumes from a checkpoint."""
        return {"prior": to_dict(self.network.config), "robots": [source.spec.robot for source in self.sources]}

    def save(self, run: Path) -> Path:
        """Write the prior into `run`/final and return that folder."""
        save_prior(run / FINAL, TrainedPrior(network=self.network, sources=self.sources))
        return run / FINAL


def from_datasets(
    sets: Sequence[DatasetInfo | Path],
    weights: Sequence[float],
    windows: ActionChunkConfig,
    *,
    config: PriorConfig,
    seed: int,
) -> PriorStage:
    """Build a motion prior for datasets of play.

    Raises:
        DataError: a dataset is missing, or too small to hold out episodes.
    """
    sources, held_out = [], []
    for number, (data, weight) in enumerate(zip(sets, weights, strict=True)):
        motions = load(data, windows)
        sources.append(Source(spec=motions.spec, norm=motions.norm, weight=weight))
        batches = []
        if windows.holdout_every:
            out = load(data, windows, held_out=True, norm=motions.norm)
            batches = held_out_batches(out, windows, source=number, seed=seed, num=HELD_OUT)
        held_out.append(batches)
    if len({source.spec.robot for source in sources}) < len(sources):
        raise DataError(
            "Each robot of a mixture must have one dataset. Collect more episodes into that dataset instead of naming "
            "two."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MotionPrior(config)
    return PriorStage(network=network, sources=sources, held_out=held_out)
