"""Stage 1, motion prior: rebuild a stretch of motion from one latent (METHOD.md B). No images, no words.

    L = E_t || v(x_t, t, z) - (a - e) ||^2,   z = encoder(s, a, s, a, ...),   x_t = (1 - t) e + t a

over the places that a robot has. Robots share one layout (specs.UNIFIED_*), each normalised by its own statistics.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tap_ray.config import from_dict, to_dict
from tap_ray.dataset.motions import MotionWindows, held_out_batches, load
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import CheckpointError, DataError
from tap_ray.metrics import r_squared
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.weights import load_model
from tap_ray.runs import read_json, write_json
from tap_ray.specs import UNIFIED_ACTION, RobotSpec, unified_places
from tap_ray.training.batches import Batch, to_tensors
from tap_ray.training.stage import FINAL
from tap_ray.types import Motion

HELD_OUT = 2048
"""Stretches of each robot that are judged."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One robot's motion, as the prior was trained on it."""

    spec: RobotSpec
    norm: NormStats
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return {"spec": self.spec.to_json(), "norm": self.norm.to_json(), "weight": self.weight}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Source":
        """Inverse of `to_json`."""
        spec, norm = RobotSpec.from_json(data["spec"]), NormStats.from_json(data["norm"])
        return cls(spec=spec, norm=norm, weight=float(data["weight"]))


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The objective; `fit` calls its loss."""

    name: str = "prior"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and "prior/loss": squared error of the velocity, normalised."""
        loss = model(batch)["loss"]
        return loss, {"prior/loss": loss}


@dataclass(frozen=True, kw_only=True)
class PriorStage:
    """The prior, ready for `fit`."""

    network: MotionPrior
    sources: Sequence[Source]
    held_out: Sequence[Sequence[Motion]]
    """For each source; nobody trains on them."""
    objective: FlowMatching = field(default_factory=FlowMatching)
    lr_scale: dict[str, float] = field(default_factory=dict)

    def validate(self) -> dict[str, float]:
        """What `reconstruction` finds for each robot, "prior/<robot>_r2_<slot>" and the mean over its slots."""
        metrics: dict[str, float] = {}
        for source, motions in zip(self.sources, self.held_out, strict=True):
            if not motions:
                continue
            robot = source.spec.robot
            r2 = reconstruction(self.network, motions, source.spec)
            metrics |= {f"prior/{robot}_r2_{slot}": value for slot, value in r2.items()}
            metrics[f"prior/{robot}_r2"] = float(np.mean(list(r2.values())))
        return metrics

    def facts(self) -> dict[str, Any]:
        """For `Hooks.facts`: what must be equal when a checkpoint is taken up again."""
        return {"prior": to_dict(self.network.config), "robots": [source.spec.robot for source in self.sources]}

    def save(self, run: Path) -> Path:
        """Write the prior into `run`/final and return that folder."""
        folder = run / FINAL
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "prior.json", to_dict(self.network.config))
        write_json(folder / "sources.json", [source.to_json() for source in self.sources])
        temporary = folder / ".model.tmp"
        save_file({n: v.detach().cpu().contiguous() for n, v in self.network.state_dict().items()}, temporary)
        temporary.replace(folder / "model.safetensors")
        return folder


def from_datasets(
    paths: Sequence[Path], weights: Sequence[float], windows: MotionWindows, *, config: PriorConfig, seed: int
) -> PriorStage:
    """A fresh prior for data sets of play.

    Raises:
        DataError: a data set is missing, or too small to hold anything out.
    """
    sources, held_out = [], []
    for number, (path, weight) in enumerate(zip(paths, weights, strict=True)):
        motions = load(path, windows)
        sources.append(Source(spec=motions.spec, norm=motions.norm, weight=weight))
        judged = []
        if windows.holdout_every:
            out = load(path, windows, held_out=True, norm=motions.norm)
            judged = held_out_batches(out, windows, source=number, seed=seed, num=HELD_OUT)
        held_out.append(judged)
    if len({source.spec.robot for source in sources}) < len(sources):
        raise DataError("Each robot of a mixture has one data set: collect more into it instead of naming two.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MotionPrior(config)
    return PriorStage(network=network, sources=sources, held_out=held_out)


def load_prior(run: Path) -> tuple[MotionPrior, list[Source]]:
    """The prior of a finished run.

    Raises:
        CheckpointError: missing, cut off, or made by another version.
    """
    folder = run / FINAL
    if not (folder / "prior.json").is_file():
        raise CheckpointError(
            f"{folder} holds no motion prior (no prior.json). Give a run of `jobs.pretrain motion-prior`."
        )
    config = from_dict(PriorConfig, read_json(folder / "prior.json"), where=str(folder / "prior.json"))
    prior = MotionPrior(config)
    load_model(folder / "model.safetensors", prior)
    return prior.eval(), [Source.from_json(source) for source in read_json(folder / "sources.json")]


@torch.no_grad()
def rebuild(prior: MotionPrior, motion: Motion, *, num_steps: int | None = None, seed: int = 0) -> np.ndarray:
    """(N, H, A) normalised actions rebuilt from the latents of a batch; the noise follows from `seed`."""
    device = next(prior.parameters()).device
    batch = to_tensors(motion, device)
    latent = prior.encoder(batch["action"], batch["state"], batch["step_mask"])
    noise = torch.randn(batch["action"].shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return prior.decoder.sample(latent, batch["place_mask"], noise, num_steps).cpu().numpy()


def reconstruction(
    prior: MotionPrior, motions: Sequence[Motion], spec: RobotSpec, *, num_steps: int | None = None
) -> dict[str, float]:
    """R^2 of each slot of held-out motion rebuilt from its latent; slots that hardly move are left out."""
    places = list(unified_places(spec.action, UNIFIED_ACTION))
    guess = np.concatenate([rebuild(prior, motion, num_steps=num_steps) for motion in motions])[:, :, places]
    truth = np.concatenate([motion.action for motion in motions])[:, :, places]
    r2 = r_squared(guess.reshape(-1, len(places)), truth.reshape(-1, len(places)), min_std=0.05)
    return {slot.name: float(value) for slot, value in zip(spec.action, r2, strict=True) if np.isfinite(value)}
