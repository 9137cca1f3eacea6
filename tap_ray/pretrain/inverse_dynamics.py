"""Stage 1, inverse dynamics: which action led from one image to the other? No language anywhere.

    L = || f(phi(o_t), phi(o_{t+k})) - a_t ||^2                      (METHOD.md A)
      + reach_weight || g(phi(o_t), context) - reach ||^2            (SPIKE.md, "reach"; optional)

With goals in which the robot stays as it is (windows.goal_without_robot) the goal no longer gives the action or the
tip's way away: it only says which object ends up elsewhere. The goal stem then reads nothing but that change, so the
features that Stage 2 keeps must find robot and object.
"""

from dataclasses import dataclass, replace
from typing import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.reader import DatasetInfo, stats_of
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import ConfigError
from tap_ray.models.build import Trained, new_policy
from tap_ray.models.heads import masked_mse
from tap_ray.models.policy import PolicyConfig, TapPolicy
from tap_ray.specs import RobotSpec
from tap_ray.training.batches import Batch
from tap_ray.training.stage import Stage, fitted, held_out_windows
from tap_ray.types import Window

NUM_REACH = 6
"""Reach targets of a window: displacement of the tip, way to the next contact; 3 each, m."""


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig:
    """The parts of the loss."""

    reach_weight: float = 0.0
    """Of the reach loss against the action loss, both on normalised targets; 0 turns it off."""
    beyond_goal: bool = False
    """Whether actions behind the goal image count too. They cannot be told from the two images; with them the chunk
    learns how play usually goes on."""


@dataclass(frozen=True, kw_only=True)
class InverseDynamics:
    """The objective; `fit` calls its loss."""

    config: InverseDynamicsConfig
    policy: TapPolicy
    """Bare model: its statistics normalise the targets."""
    name: str = "idm"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss; metrics "idm/loss" (whole), "idm/action_mse" and "idm/reach_mse" (normalised)."""
        out = model(batch)
        horizon = out["action"].shape[1]
        target, mask = batch["action"][:, :horizon], batch["action_mask"][:, :horizon]
        if not self.config.beyond_goal:
            mask = mask & (torch.arange(mask.shape[1], device=mask.device) < batch["k"][:, None])
        action = masked_mse(out["action"], self.policy.action_scale(target), mask)
        if "reach" not in out:
            return action, {"idm/loss": action, "idm/action_mse": action}
        if "reach" not in batch:
            # Every parameter takes part in every step, else several workers wait for each other.
            return action + 0.0 * out["reach"].sum(), {"idm/loss": action, "idm/action_mse": action}
        reach = masked_mse(out["reach"], self.policy.reach_scale(batch["reach"]), batch["reach_mask"])
        loss = action + self.config.reach_weight * reach
        return loss, {"idm/loss": loss, "idm/action_mse": action, "idm/reach_mse": reach}


def build(
    *,
    spec: RobotSpec,
    norm: NormStats,
    policy: PolicyConfig,
    config: InverseDynamicsConfig,
    held_out: Sequence[Window],
    seed: int,
) -> Stage:
    """A fresh Stage 1 from its parts (live play has no data set).

    Args:
        spec: of the robot that plays.
        norm: statistics of its actions.
        policy: sizes; action slots and the reach head are filled in here.
        config: the loss.
        held_out: windows to judge on, and to take the reach targets' statistics from; the caller draws them once.
        seed: of the weights.

    Raises:
        ConfigError: a policy without goal, or reach targets wanted but not in the windows.
    """
    if policy.context != "goal":
        raise ConfigError(f"Inverse dynamics needs --policy.context goal, not {policy.context!r}: play has no words.")
    if policy.head != "regression":
        raise ConfigError("Inverse dynamics has a regression head; --policy.head flow is Stage 2's (jobs.align).")
    num_reach = NUM_REACH if config.reach_weight else 0
    policy = replace(policy, num_actions=len(spec.action), num_reach=num_reach)
    model = new_policy(policy, seed=seed)
    model.set_norm(norm)
    if num_reach:
        model.reach_scale.set(*reach_moments(held_out))
    objective = InverseDynamics(config=config, policy=model)
    trained = Trained(policy=model, spec=spec, norm=norm, tokenizer=None)
    return Stage(model=trained, objective=objective, held_out=held_out, lr_scale={})


def from_dataset(
    dataset: DatasetInfo,
    windows: WindowConfig,
    *,
    policy: PolicyConfig,
    config: InverseDynamicsConfig,
    seed: int,
) -> Stage:
    """A fresh Stage 1 for a data set of play.

    A chunk has no more steps than a goal is ahead (unless the steps behind it count): those nobody could train.
    The judgement is at k = 1 whatever k is trained, except for goals without robot and reach targets, which say nothing
    at k = 1.

    Raises:
        DataError: no held-out episodes, no statistics.
        ConfigError: windows and policy do not fit each other.
    """
    require_goals(windows, config)
    judged = windows if windows.goal_without_robot or config.reach_weight else replace(windows, k_max=1)
    if not config.beyond_goal:
        windows = replace(windows, horizon=min(windows.horizon, windows.k_max))
    if windows.goal_without_robot:
        policy = replace(policy, goal="change")
    return build(
        spec=dataset.spec,
        norm=norm_stats(stats_of(dataset, split_episodes(dataset, windows)[0]), dataset.spec),
        policy=fitted(policy, dataset, windows),
        config=config,
        held_out=held_out_windows(dataset, judged, seed=seed),
        seed=seed,
    )


def require_goals(windows: WindowConfig, config: InverseDynamicsConfig) -> None:
    """Raise ConfigError unless these windows have the goals and the reach targets that the loss needs."""
    if windows.k_max < 1:
        raise ConfigError("Inverse dynamics needs a goal image: --windows.k-max at least 1.")
    if config.reach_weight and not windows.reach_steps:
        raise ConfigError("A reach loss needs reach targets: --windows.reach-steps at least 1.")
    if config.reach_weight and windows.reach_steps > windows.k_max:
        raise ConfigError(
            f"A goal image {windows.k_max} steps ahead cannot tell where the tip is after {windows.reach_steps}: give "
            "a --windows.k-max of at least --windows.reach-steps."
        )


def reach_moments(windows: Iterable[Window]) -> tuple[list[float], list[float]]:
    """Offset 0 and root mean square (R,) of the reach targets, m, over the entries that exist.

    The offset stays 0: "stay where you are" is then 0 whatever the data.
    """
    have = [w for w in windows if w.reach is not None and w.reach_mask is not None]
    if not have:
        raise ConfigError("A reach loss needs windows with reach targets: --windows.reach-steps at least 1.")
    reach = np.concatenate([w.reach for w in have if w.reach is not None]).astype(np.float64)
    mask = np.concatenate([w.reach_mask for w in have if w.reach_mask is not None])
    square = np.where(mask, reach**2, 0).sum(0) / np.maximum(mask.sum(0), 1)
    return [0.0] * reach.shape[1], np.maximum(np.sqrt(square), 1e-3).tolist()
