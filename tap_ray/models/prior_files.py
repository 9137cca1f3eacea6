"""Saves and loads a trained motion prior: safetensors for weights, JSON for everything else.

final/
    model.safetensors          weights of encoder and decoder
    prior.json                 PriorConfig
    sources.json               the robots it was trained on, each with its spec and its statistics
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from tap_ray import storage
from tap_ray.config import from_dict, to_dict
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import CheckpointError
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.weights import load_model, write_tensors
from tap_ray.runs import read_json, require_keys, write_json
from tap_ray.specs import RobotSpec


@dataclass(frozen=True, kw_only=True)
class Source:
    """One robot's motion, as a prior was trained on it."""

    spec: RobotSpec
    norm: NormStats
    weight: float
    """Its share of each batch, relative to the other robots'."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return {"spec": self.spec.to_json(), "norm": self.norm.to_json(), "weight": self.weight}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Source":
        """Inverse of `to_json`."""
        spec, norm = RobotSpec.from_json(data["spec"]), NormStats.from_json(data["norm"])
        return cls(spec=spec, norm=norm, weight=float(data["weight"]))


@dataclass(frozen=True, kw_only=True)
class TrainedPrior:
    """A motion prior with all that is needed to use it."""

    network: MotionPrior
    sources: Sequence[Source]

    def norm_of(self, spec: RobotSpec) -> NormStats | None:
        """Statistics that this robot's motion was normalized with; None for a robot that the prior was not trained
        on."""
        return next((source.norm for source in self.sources if source.spec.robot == spec.robot), None)


def save_prior(folder: Path, trained: TrainedPrior) -> None:
    """Write everything that `load_prior` needs into `folder`; the weights last."""
    storage.make_folder(folder)
    write_json(folder / "prior.json", to_dict(trained.network.config))
    write_json(folder / "sources.json", [source.to_json() for source in trained.sources])
    write_tensors(folder / "model.safetensors", trained.network.state_dict())


def load_prior(folder: Path) -> TrainedPrior:
    """Inverse of `save_prior`.

    Raises:
        CheckpointError: the folder is missing, truncated, or made by another version.
    """
    if not (folder / "prior.json").is_file():
        raise CheckpointError(
            f"{folder} contains no motion prior (prior.json is missing). Give a run folder of `jobs.pretrain_prior`."
        )
    config = from_dict(PriorConfig, read_json(folder / "prior.json"), where=str(folder / "prior.json"))
    network = MotionPrior(config)
    load_model(folder / "model.safetensors", network)
    sources = []
    for source in read_json(folder / "sources.json"):
        require_keys(source, ("spec", "norm", "weight"), folder / "sources.json")
        sources.append(Source.from_json(source))
    return TrainedPrior(network=network.eval(), sources=sources)
