"""Measures what a motion prior has learned, on held-out motion of each of its robots: reconstruction, smoothness,
probes.

Probes of the latent are linear (ridge, see probes.py), fitted on training motion and evaluated on held-out motion.
"""

from typing import Any, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from tap_ray.dataset.action_chunks import ActionChunks, gather_chunks
from tap_ray.inspect.probes import ridge
from tap_ray.media.text_table import columns
from tap_ray.metrics import log_dimensionless_jerk, r_squared
from tap_ray.models.prior_files import Source, TrainedPrior
from tap_ray.rng import generator
from tap_ray.specs import UNIFIED_ACTION, unified_indices
from tap_ray.training.motion_validation import encoded, rebuild, reconstruction
from tap_ray.types import ActionChunkBatch

NUM_STEPS = (1, 2, 5, 10, 20)
"""Numbers of Euler steps for which the error is reported."""
NUM_CHUNKS = 1024
"""Number of held-out chunks of each robot; the probes are fitted on four times as many."""
PENALTY = 1e-3
"""Penalty of the ridge regression, relative to the mean eigenvalue of the latents' covariance."""
PROBED = "R^2 of probes of the latent"
PANELS = 5
"""Number of points on the path from one latent to another."""


def analyze(
    prior: TrainedPrior, source: Source, train: ActionChunks, held_out: ActionChunks, *, seed: int = 0
) -> dict[str, Any]:
    """Compute the report of one robot.

    Args:
        prior: the trained prior.
        source: the robot.
        train: motion that it was trained on, for the probes.
        held_out: motion of it that the prior was not trained on, normalized by `source.norm`.
        seed: random seed of the choice of chunks, and of the noise.

    Returns:
        "slots": R^2 by slot; "steps": mean R^2 by number of Euler steps; "smoothness": log dimensionless jerk of the
        data, of what is rebuilt and of what random latents give (higher is smoother); "probe": R^2 of speed, direction
        (mean of the first three slots) and of whether the gripper switches, from the latent.
    """
    chunks, seen = _chosen(prior, held_out, NUM_CHUNKS, seed), _chosen(prior, train, 4 * NUM_CHUNKS, seed)
    network, spec = prior.network, source.spec
    usual = network.config.num_steps
    by_steps = {n: reconstruction(network, [chunks], spec, num_steps=n) for n in {*NUM_STEPS, usual}}
    path = {"data": chunks.action, "rebuilt": rebuild(network, chunks, seed=seed)}
    path["random latents"] = _decode_random_latents(prior, chunks, seed)
    smooth = {name: _jerk(_unnormalize(source, action), source) for name, action in path.items()}
    truth, known = (_targets(_unnormalize(source, part.action), source) for part in (chunks, seen))
    fit_on, want = (np.stack(list(targets.values()), axis=1) for targets in (known, truth))
    [guess] = ridge(encoded(network, seen).numpy(), fit_on, encoded(network, chunks).numpy(), (PENALTY,))
    r2 = r_squared(guess, want, min_std=1e-4)
    return {
        "slots": by_steps[usual],
        "steps": {str(n): float(np.mean(list(slots.values()))) for n, slots in ((n, by_steps[n]) for n in NUM_STEPS)},
        "smoothness": smooth,
        "probe": {name: float(value) for name, value in zip(truth, r2, strict=True) if np.isfinite(value)},
    }


@torch.no_grad()
def interpolate_latents(prior: TrainedPrior, source: Source, held_out: ActionChunks, *, seed: int = 0) -> np.ndarray:
    """(PANELS, H, A) actions, physical units, on the path from the latent of one held-out motion to an opposite one.

    The path is the great circle (Shoemake 1985, SIGGRAPH 19:245); the noise is the same for all points.
    """
    chunks = _chosen(prior, held_out, NUM_CHUNKS, seed)
    moved_N3 = _unnormalize(source, chunks.action)[:, :, :3].sum(1)
    first = int(np.linalg.norm(moved_N3, axis=1).argmax())
    last = int((moved_N3 @ moved_N3[first]).argmin())
    ends = encoded(prior.network, chunks)[[first, last]]
    angle = torch.arccos((ends[0] @ ends[1]).clamp(-1, 1))
    part = torch.linspace(0, 1, PANELS)[:, None]
    latent = (torch.sin((1 - part) * angle) * ends[0] + torch.sin(part * angle) * ends[1]) / torch.sin(angle)
    return _unnormalize(source, _sampled(prior, latent, chunks, seed, same=True))


def text(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The report as a text table, one line per robot."""
    steps = [f"{n} steps" for n in NUM_STEPS]
    table = [["robot", "R^2 mean", *steps, "jerk: data", "rebuilt", "random", PROBED]]
    for robot, about in report.items():
        mean = np.mean(list(about["slots"].values()))
        numbers = [f"{value:.3f}" for value in (mean, *about["steps"].values())]
        jerks = [f"{value:.1f}" for value in about["smoothness"].values()]
        probed = ", ".join(f"{name} {value:.2f}" for name, value in about["probe"].items())
        table.append([robot, *numbers, *jerks, probed])
    return "\n".join(columns(table))


def _chosen(prior: TrainedPrior, of: ActionChunks, num: int, seed: int) -> ActionChunkBatch:
    first_N = generator(seed, "motion_prior", "report").permutation(of.first_W)[:num]
    return gather_chunks(of, first_N, prior.network.config.chunk, source=0)


@torch.no_grad()
def _decode_random_latents(prior: TrainedPrior, chunks: ActionChunkBatch, seed: int) -> np.ndarray:
    shape = (len(chunks.action), prior.network.config.latent)
    latent = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return _sampled(prior, latent, chunks, seed)


def _sampled(
    prior: TrainedPrior, latent: torch.Tensor, chunks: ActionChunkBatch, seed: int, same: bool = False
) -> np.ndarray:
    num, (_, horizon, dims) = len(latent), chunks.action.shape
    noise = torch.randn((1 if same else num, horizon, dims), generator=torch.Generator().manual_seed(seed))
    mask = torch.from_numpy(chunks.dim_mask[:1]).expand(num, -1)
    return prior.network.decoder.sample(latent, mask, noise.expand(num, -1, -1)).numpy()


def _unnormalize(source: Source, action_NHA: np.ndarray) -> np.ndarray:
    """(N, H, slots) in the robot's own order and units."""
    dims = list(unified_indices(source.spec.action, UNIFIED_ACTION))
    return source.norm.action.unnormalize(action_NHA[:, :, dims])


def _jerk(action_NHA: np.ndarray, source: Source) -> float:
    """Mean log dimensionless jerk of the paths that the actions' first three slots add up to."""
    path_NH3 = action_NHA[:, :, :3].cumsum(1)
    return float(np.nanmean([log_dimensionless_jerk(path, source.spec.control_hz) for path in path_NH3]))


def _targets(action_NHA: np.ndarray, source: Source) -> dict[str, np.ndarray]:
    """The quantities that probes predict from a latent, each (N,)."""
    names = [slot.name for slot in source.spec.action]
    sign = np.sign(action_NHA[:, :, source.spec.grippers])
    switches = (np.diff(sign, axis=1) != 0).any(axis=(1, 2)).astype(float)
    direction = {names[at]: action_NHA[:, :, at].mean(1) for at in range(3)}
    return {"speed": np.linalg.norm(action_NHA[:, :, :3], axis=2).mean(1), **direction, "gripper switches": switches}
