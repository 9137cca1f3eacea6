"""Implements Stage 1: learning to move from play, without instructions. There are two objectives, each with its weight.

    next object       which actions bring the gripper to *this object* (a crop of what it will touch next), and the
                      object to *this place* (a crop of it)?   || f(o_t, crops) - a_{t:t+H} ||^2
                      + reach || g(o_t, crops) - (displacement now, to the contact, to the release) ||^2
                      - point log p(the first two key points lie on the object and on the place)
    inverse dynamics  which actions led from one image to the other?   || f(phi(o_t), phi(o_{t+k})) - a_{t:t+H} ||^2
                      (arXiv 2607.02466, Stage 1; both images pass the same encoder)

Inverse dynamics alone does not encode objects: an object that does not move until it is grasped does not help to
predict the action. The first objective requires finding the object in the image, and Stage 2 requires the same from an
instruction.
"""

from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_ray.dataset.mixture import Mixture, alone, moments
from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.reader import DatasetInfo
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch
from tap_ray.models.build import Network, PolicyBundle, new_policy
from tap_ray.models.heads import FlowHead, before_goal, masked_mse
from tap_ray.models.pointing import POINT_WEIGHT, pointing_loss
from tap_ray.models.policy import Context, PolicyConfig
from tap_ray.models.reach import NUM_REACH, reach_loss, reach_moments, shown, shown_mask
from tap_ray.specs import RobotSpec
from tap_ray.training.accumulation import num_predicted, shared
from tap_ray.training.stage import HELD_OUT_WINDOWS, Stage, resolve_sizes, scale_windows
from tap_ray.training.vlm_parts import chunks_of, new_parts
from tap_ray.types import Window


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The objectives of Stage 1; a weight of 0 turns an objective off."""

    next_object: float = 1.0
    """Weight of predicting the actions that lead to the next object. Needs play with robot masks."""
    reach: float = 1.0
    """Weight of the end effector's displacement targets relative to these actions, both normalized."""
    point: float = POINT_WEIGHT
    """Weight of the supervision of the first two key points, which point at the object and at the place."""
    inverse_dynamics: float = 0.0
    """Weight of inverse dynamics: predicting the actions between two images, k steps apart (--windows.k-max)."""

    def __post_init__(self) -> None:
        if not self.context:
            raise ConfigError("All objectives have weight 0. Give next_object or inverse_dynamics a weight above 0.")
        for name in ("reach", "point"):
            weight, default = getattr(self, name), getattr(type(self), name)
            if not self.next_object and weight not in (0.0, default):
                raise ConfigError(
                    f"--objective.{name} {weight:g} has no effect: it is part of the next object's loss, which has "
                    "weight 0. Omit it, or give --objective.next-object a weight above 0."
                )

    @property
    def context(self) -> tuple[Context, ...]:
        """The context of the policy."""
        weights: tuple[tuple[Context, float], ...] = (("crops", self.next_object), ("goal", self.inverse_dynamics))
        return tuple(name for name, weight in weights if weight)

    def windows(self, windows: WindowConfig) -> WindowConfig:
        """Complete the windows with exactly the crops, goals and targets that the objectives need.

        For inverse dynamics alone the default horizon ends at the second image, because later actions cannot be
        trained.

        Raises:
            ConfigError: inverse dynamics has no second image or a chunk beyond it, or a reach loss has no targets.
        """
        if self.inverse_dynamics and windows.k_max < 1:
            raise ConfigError("Inverse dynamics needs a second image. Set --windows.k-max to at least 1.")
        horizon = windows.horizon if self.next_object else min(windows.horizon, windows.k_max)
        if horizon < windows.horizon != WindowConfig().horizon:
            raise ConfigError(
                f"--windows.horizon {windows.horizon} has no effect: inverse dynamics alone trains the actions before "
                f"its second image, which is at most --windows.k-max {windows.k_max} steps ahead. Give "
                f"--windows.horizon {windows.k_max}, or raise --windows.k-max."
            )
        if self.next_object and self.reach and not windows.reach_steps:
            raise ConfigError("A reach loss needs reach targets. Set --windows.reach-steps to at least 1.")
        return replace(
            windows,
            horizon=horizon,
            crops=self.next_object > 0,
            k_max=windows.k_max if self.inverse_dynamics else 0,
            segment=windows.segment if self.inverse_dynamics else 1,
            reach_steps=windows.reach_steps if self.next_object and self.reach else 0,
        )


@dataclass(frozen=True, kw_only=True)
class FromPlay:
    """The objective; `fit` calls its loss."""

    config: ObjectiveConfig
    policy: Network
    """The model without DDP or compilation wrappers; its statistics normalize the targets."""
    name: str = "play"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss; "play/loss" (the total) and its terms "play/action_mse", "play/reach_mse",
        "play/point_nats" and "play/inverse_mse"; for a head that computes its own loss "play/action_loss" and
        "play/inverse_loss"."""
        out, config, parts = model(batch), self.config, {}
        target, mask = self.policy.action_scale(batch["action"]), batch["action_mask"]
        terms = []
        if config.next_object:
            if "pred" in out:
                acted, mean = "play/action_loss", out["pred"]
            else:
                acted, mean = "play/action_mse", masked_mse(out["action"], target, mask)
            parts[acted] = shared(batch, "action", mean)
            terms.append(config.next_object * parts[acted])
            if config.reach:
                mean = reach_loss(self.policy, out["reach"], batch, shown(batch["crop_mask"]))
                parts["play/reach_mse"] = shared(batch, "reach", mean)
                terms.append(config.next_object * config.reach * parts["play/reach_mse"])
            if config.point and "keypoint_logprob" in out:  # a VLM has no key points
                parts["play/point_nats"] = shared(batch, "point", pointing_loss(out["keypoint_logprob"], batch))
                terms.append(config.next_object * config.point * parts["play/point_nats"])
        name = "inverse_" if config.next_object else ""
        if config.inverse_dynamics and f"{name}pred" in out:
            parts["play/inverse_loss"] = shared(batch, "inverse", out[f"{name}pred"])
            terms.append(config.inverse_dynamics * parts["play/inverse_loss"])
        elif config.inverse_dynamics:
            guess = out[f"{name}action"]  # without another objective the chunk does not go beyond the second image
            steps = guess.shape[1]
            before = before_goal(mask[:, :steps], batch["k"])
            parts["play/inverse_mse"] = shared(batch, "inverse", masked_mse(guess, target[:, :steps], before))
            terms.append(config.inverse_dynamics * parts["play/inverse_mse"])
        loss = torch.stack(terms).sum()
        return loss, {"play/loss": loss, **parts}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """See `accumulation.Counted`."""
        config, mask, found = self.config, batch["action_mask"], {}
        if config.next_object:
            found["action"] = num_predicted(self.policy, batch, mask)
            if config.reach:
                found["reach"] = shown_mask(batch, shown(batch["crop_mask"])).sum()
            if config.point:
                found["point"] = batch["crop_px_mask"].sum()
        if config.inverse_dynamics:
            found["inverse"] = num_predicted(self.policy, batch, before_goal(mask, batch["k"]))
        return found


def build(
    *,
    spec: RobotSpec,
    norm: NormStats,
    policy: PolicyConfig,
    config: ObjectiveConfig,
    held_out: Sequence[Window],
    seed: int,
    action_NHA: Callable[[], np.ndarray] | None = None,
) -> Stage:
    """Build Stage 1 from its parts.

    Args:
        spec: interface of the robot.
        norm: normalization statistics of its actions.
        policy: sizes; context, action slots and the reach head are filled in here.
        config: the objectives.
        held_out: validation windows, which also give the statistics of the reach targets; the caller draws them once.
        seed: random seed of the weights.
        action_NHA: returns the chunks on which action tokens are fitted; None: those of the validation windows.

    Raises:
        ConfigError: the windows lack requested reach targets, or the head cannot be used in Stage 1.
    """
    if policy.head == "flow" and not policy.vlm.pretrained:
        raise ConfigError(
            "Stage 1 trains a regression head. --policy.head flow is only for Stage 2 (jobs.align), or for a VLM."
        )
    num_reach = NUM_REACH * len(spec.arms) if config.next_object and config.reach else 0
    sizes = {"num_actions": len(spec.action), "num_motion_states": len(spec.state) if policy.head == "flow" else 0}
    policy = replace(policy, context=config.context, num_reach=num_reach, **sizes)
    parts = new_parts(policy, action_NHA or (lambda: np.concatenate([w.action for w in held_out])), norm)
    model = new_policy(policy, seed=seed, parts=parts)
    model.set_norm(norm)
    if isinstance(model.last, FlowHead):
        model.last.set_layout(spec)
    if num_reach:
        model.reach_scale.set(*reach_moments(held_out))
    bundle = PolicyBundle(network=model, spec=spec, norm=norm, tokenizer=None)
    return Stage(model=bundle, objective=FromPlay(config=config, policy=model), held_out=held_out, lr_scale={})


def from_dataset(
    dataset: DatasetInfo, windows: WindowConfig, *, policy: PolicyConfig, config: ObjectiveConfig, seed: int
) -> Stage:
    """`from_mixture` of one dataset."""
    return from_mixture(alone(dataset), windows, policy=policy, config=config, seed=seed)


def from_mixture(
    mixture: Mixture, windows: WindowConfig, *, policy: PolicyConfig, config: ObjectiveConfig, seed: int
) -> Stage:
    """Build Stage 1 for datasets of play; each is part of the validation by its share.

    Args:
        mixture: datasets of play; with robot masks for the next-object objective.
        windows: what the objectives need is filled in here (`ObjectiveConfig.windows`).
        policy: sizes.
        config: the objectives.
        seed: random seed of the weights.

    Raises:
        DataError: there are no held-out episodes, statistics, masks or crops.
        ConfigError: windows and policy do not fit each other.
    """
    windows = stage_windows(windows, config, policy)
    validation = mixture.windows(windows if config.next_object else replace(windows, k_max=1))
    drawn: dict[str, list[Window]] = {}
    for name, dataset, dataset_windows in zip(mixture.names, mixture.sets, validation, strict=True):
        num = HELD_OUT_WINDOWS * dataset_windows.batch_size // windows.batch_size
        drawn[name] = scale_windows(dataset, dataset_windows, seed=seed, num=num)

    def chunks() -> np.ndarray:
        sets = [(dataset, split_episodes(dataset, windows)[0]) for dataset in mixture.sets]
        return np.concatenate([chunks_of(dataset, train, windows.horizon) for dataset, train in sets])

    stage = build(
        spec=mixture.spec,
        norm=norm_stats(moments(mixture, windows), mixture.spec),
        policy=resolve_sizes(policy, mixture.sets[0], windows),
        config=config,
        held_out=[window for of_dataset in drawn.values() for window in of_dataset],
        seed=seed,
        action_NHA=chunks,
    )
    if not windows.holdout_every:  # what was drawn is of the training episodes: it only gave the scale
        return replace(stage, held_out=[])
    of = [name for name, of_dataset in drawn.items() for _ in of_dataset] if len(drawn) > 1 else []
    return replace(stage, held_out_of=of)


def stage_windows(windows: WindowConfig, config: ObjectiveConfig, policy: PolicyConfig) -> WindowConfig:
    """Complete the windows with what the objectives need, and for a head with a fixed chunk length with that length:
    the motion prior's, or for action tokens the requested horizon."""
    if policy.head == "regression":
        return config.windows(windows)
    horizon = policy.prior.chunk if policy.head == "flow" else windows.horizon
    return replace(config.windows(replace(windows, horizon=WindowConfig().horizon)), horizon=horizon)
