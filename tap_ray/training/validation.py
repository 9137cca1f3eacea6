"""Validates predicted actions on held-out windows: R^2 of each slot that moves, and the gripper's sign."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tap_ray.errors import DataError
from tap_ray.metrics import gripper_accuracy, r_squared
from tap_ray.models.batch import Batch
from tap_ray.models.build import Network
from tap_ray.models.precision import autocast
from tap_ray.models.reach import REACH_NAMES, shown, shown_mask
from tap_ray.specs import RobotSpec
from tap_ray.training.batches import to_tensors
from tap_ray.training.loop import Objective
from tap_ray.training.sharding import Each
from tap_ray.types import Window


@torch.no_grad()
def score_policy(
    policy: Network,
    objective: Objective,
    windows: Sequence[Window],
    spec: RobotSpec,
    *,
    parts: Sequence[str] = (),
    bf16: str = "auto",
    each: Each = map,
) -> dict[str, float]:
    """Measure how well the first action of each chunk (and the reach targets, if there are any) is predicted.

    Args:
        policy: the network; it is put into evaluation mode, and its mode is restored.
        objective: its `inputs` turn a batch into what the policy reads; its name starts each metric.
        windows: held-out data, the same at every call.
        spec: names and ranges of the slots.
        parts: of a mixture, the name of each window's dataset; empty: all are of one.
        bf16: see `TrainConfig`.
        each: `map`, or a function like it that shares the windows among processes.

    Returns:
        "<name>/r2_<slot>" for each slot but the gripper whose standard deviation in these windows reaches 1 % of half
        its range (so no R^2 is made of a slot that does not move); "<name>/r2_mean" over the translation slots among
        them (all of them where actions move joints); "<name>/gripper_accuracy"; "<name>/val_loss"; with a reach head
        "<name>/r2_<target>" for each of `models.reach.REACH_NAMES` (of several arms: "<name>/r2_left_<target>" ...) and
        the means "<name>/r2_move", "<name>/r2_contact" and "<name>/r2_release". Of each part those of these that are
        `OF_PARTS`, "<name>/<part>_val_loss" ...

    Raises:
        DataError: there are no windows.
    """
    device, training = next(policy.parameters()).device, policy.training
    policy.eval()
    # The random numbers of training do not depend on validation.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        scored = list(each(partial(_scored, policy, objective, bf16=bf16), enumerate(windows)))
    policy.train(training)
    if not scored:
        raise DataError("There are no held-out windows to validate on. Hold out more episodes, or collect more.")
    metrics = _metrics(f"{objective.name}/", scored, spec)
    for part in dict.fromkeys(parts):
        part_scores = [each for each, name in zip(scored, parts, strict=True) if name == part]
        found = _metrics("", part_scores, spec)
        metrics |= {f"{objective.name}/{part}_{name}": found[name] for name in OF_PARTS if name in found}
    return metrics


def _scored(policy: Network, objective: Objective, numbered: tuple[int, Window], *, bf16: str) -> "_Scored":
    number, window = numbered
    torch.manual_seed(number)  # the noise is the same at every call and on every worker
    device = next(policy.parameters()).device
    batch, seen = to_tensors(window, device, policy.on_cpu), _Seen(policy)
    with autocast(bf16, device, policy):
        loss, _ = objective.loss(seen, batch)
    return _Scored(float(loss), len(window.rgb), _columns(policy, seen.out, batch))


OF_PARTS = ("val_loss", "r2_mean", "r2_contact", "r2_release", "gripper_accuracy")
"""Metrics that each dataset of a mixture has for itself, too."""


@dataclass(frozen=True)
class _Scored:
    """One batch of windows."""

    loss: float
    size: int
    columns: Mapping[str, np.ndarray]


def _metrics(prefix: str, scored: Sequence[_Scored], spec: RobotSpec) -> dict[str, float]:
    columns = {key: np.concatenate([each.columns[key] for each in scored]) for key in scored[0].columns}
    losses, sizes = [each.loss for each in scored], [each.size for each in scored]
    metrics = {f"{prefix}val_loss": float(np.average(losses, weights=sizes))}
    metrics |= _of_actions(prefix, columns["guess"], columns["truth"], spec)
    if "reach" in columns:
        reach = [columns[key] for key in ("reach", "reach_truth", "reach_mask")]
        metrics |= _of_reach(prefix, [arm.side for arm in spec.arms], *reach)
    return metrics


def names(objective: str, spec: RobotSpec) -> list[str]:
    """Names of the metrics that `score_policy` may return for a robot, without a reach head."""
    slots = [slot.name for at, slot in enumerate(spec.action) if at not in spec.grippers]
    return [f"{objective}/{name}" for name in ("val_loss", "r2_mean", "gripper_accuracy", *(f"r2_{s}" for s in slots))]


MOVES = 0.01
"""Smallest standard deviation, as a part of half a slot's range, at which an R^2 is reported."""


class _Seen(torch.nn.Module):
    """The policy, which remembers its last output."""

    def __init__(self, policy: Network) -> None:
        super().__init__()
        self.policy = policy
        self.out: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.out = self.policy(batch)
        return self.out


def _columns(policy: Network, out: dict[str, Tensor], batch: Batch) -> dict[str, np.ndarray]:
    found = {"guess": policy.action_scale.unnormalize(out["action"])[:, 0], "truth": batch["action"][:, 0]}
    if "reach" in out and "reach" in batch:
        mask = shown_mask(batch, shown(batch["crop_mask"]) if "crop_mask" in batch else None)
        found |= {"reach": policy.reach_scale.unnormalize(out["reach"]), "reach_truth": batch["reach"]}
        found["reach_mask"] = mask
    return {key: value.cpu().numpy() for key, value in found.items()}


def _of_actions(prefix: str, guess_NA: np.ndarray, truth_NA: np.ndarray, spec: RobotSpec) -> dict[str, float]:
    names = [slot.name for slot in spec.action]
    half_range = (spec.action_high_A - spec.action_low_A) / 2
    r2_A = r_squared(guess_NA / half_range, truth_NA / half_range, min_std=MOVES)
    moving = {at: float(r2) for at, r2 in enumerate(r2_A) if np.isfinite(r2) and at not in spec.grippers}
    metrics = {f"{prefix}r2_{names[at]}": value for at, value in moving.items()}
    translation = [at for arm in spec.arms for at in arm.delta_pos]
    averaged = [moving[at] for at in translation or moving if at in moving]
    if averaged:
        metrics[f"{prefix}r2_mean"] = float(np.mean(averaged))
    if grippers := list(spec.grippers):
        metrics[f"{prefix}gripper_accuracy"] = gripper_accuracy(guess_NA[:, grippers], truth_NA[:, grippers])
    return metrics


def _of_reach(
    prefix: str, sides: list[str], guess_NR: np.ndarray, truth_NR: np.ndarray, mask_NR: np.ndarray
) -> dict[str, float]:
    """R^2 of each reach target over the rows that have it, and the mean over the axes (and arms) of each kind."""
    metrics, kinds = {}, {target.split("_")[0]: [] for target in REACH_NAMES}
    for column, (side, target) in enumerate(product(sides, REACH_NAMES)):
        keep = mask_NR[:, column].astype(bool)
        one = slice(column, column + 1)
        r2 = float(r_squared(guess_NR[keep, one], truth_NR[keep, one])[0]) if keep.any() else np.nan
        if np.isfinite(r2):  # no R^2 for constant slots
            metrics[f"{prefix}r2_{side}{target}"] = r2
            kinds[target.split("_")[0]].append(r2)
    return metrics | {f"{prefix}r2_{kind}": float(np.mean(found)) for kind, found in kinds.items() if found}
