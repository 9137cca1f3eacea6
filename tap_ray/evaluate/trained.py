"""Prepares a trained policy for evaluation: checks that it fits the protocol, loads it in a fleet, and measures its
latency.

Torch is imported only by the last two.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from tap_ray import storage
from tap_ray.errors import ConfigError, nearest
from tap_ray.runs import read_json, require_done
from tap_ray.specs import RobotSpec, require_compatible
from tap_ray.types import EnvConfig, Policy

BUILT_IN = ("expert", "random")
"""Policies without a training run: the upper and the lower bound."""


def require_fit(run: Path | str, *, spec: RobotSpec, image_size: int) -> None:
    """Raise an error unless a run's policy fits the robots that it is evaluated on; reads only small JSON files.

    Args:
        run: folder of a run of jobs.align.
        spec: interface of the robots.
        image_size: side of their images, px.

    Raises:
        ConfigError: there is no such folder (the message lists the built-in policies), or the policy needs images of
            another size.
        CheckpointError: not a run of jobs.align, or not finished.
        SpecError: names every convention that differs.
    """
    folder = storage.to_path(run)
    if not folder.exists():
        raise ConfigError(
            f"--policy {str(run)!r} is neither a run folder nor a built-in policy. {nearest(str(run), BUILT_IN)}"
        )
    trained, trained_px = interface(folder)
    require_compatible(spec, trained, have_name=f"robot {spec.robot!r}", want_name=f"policy {run}")
    if trained_px != image_size:
        raise ConfigError(
            f"{run} was trained on images of {trained_px} px; got {image_size} px. Use --image-size {trained_px}."
        )


def interface(run: Path | str) -> tuple[RobotSpec, int]:
    """What a run's policy was trained for: the robot's spec, and the side of its images, px. Reads only JSON.

    Raises:
        CheckpointError: not a run of jobs.align, or not finished.
        SpecError: the spec is of another version.
    """
    require_done(run, job="align")
    final = storage.to_path(run) / "final"
    spec = RobotSpec.from_json(read_json(final / "spec.json"), where=str(final / "spec.json"))
    return spec, read_json(final / "policy.json", needs=("image_size",))["image_size"]


def latency(run: str, *, device: str = "cpu") -> dict[str, float]:
    """Median time of one inference for one robot, ms: "policy", and for a policy with a history also "without
    history". Empty for "cuda" on a machine without a GPU."""
    import torch

    from tap_ray.models.build import load_bundle
    from tap_ray.models.inference import PolicyRunner

    if device == "cuda" and not torch.cuda.is_available():
        return {}
    policy = load_bundle(storage.to_path(run) / "final")
    both = {"policy": PolicyRunner(policy, device=device).latency_ms()}
    if policy.network.config.history:
        both["without history"] = PolicyRunner(policy, remember=False, device=device).latency_ms()
    return both


def load(run: str, scene: EnvConfig, num_robots: int, *, device: str = "cpu") -> Policy:
    """A function that loads a run's policy once per process for any scene and number of robots."""
    return _loaded(run, device)


@dataclass(frozen=True, eq=False)
class Carried:
    """A run's policy together with its files, so that it can be loaded on machines that cannot read the run's
    folder."""

    files: Mapping[str, bytes]
    """Path below the run's folder -> content."""
    device: str = "cpu"

    def __call__(self, scene: EnvConfig, num_robots: int) -> Policy:
        """The policy, loaded once per process for any scene and number of robots."""
        return self._policy

    @functools.cached_property
    def _policy(self) -> Policy:
        from tap_ray.models.inference import load_policy

        with tempfile.TemporaryDirectory(prefix="tap_ray-policy-") as folder:
            for name, content in self.files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return load_policy(Path(folder), device=self.device)[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self.files, self.device)


def carried(run: str, *, device: str = "cpu") -> Carried:
    """Read the files of a run's policy: its final weights and its manifest."""
    folder = storage.to_path(run)
    files = [folder / "manifest.json", *sorted(file for file in (folder / "final").rglob("*") if file.is_file())]
    content = {file.relative_to(folder).as_posix(): storage.read(file) for file in files}
    return Carried(content, device)


@functools.cache
def _loaded(run: str, device: str) -> Policy:
    from tap_ray.models.inference import load_policy

    return load_policy(storage.to_path(run), device=device)[0]
