"""The objective of Stage 2: predict the demonstrated action from the image and the instruction.

With a regression head it is behavior cloning, with the head and loss of Stage 1 and optional terms that preserve what
Stage 1 has learned:

    L = || f(o_t, instruction) - a ||^2
      + reach    || g(o_t, instruction) - reach ||^2   reach targets, computed from the rest of the demonstration
      + crops    || f(o_t, crops) - a ||^2             the same demonstration with the context of Stage 1
      + context  || c(instruction) - c(crops) ||^2     no gradient flows into c(crops)
      - point    log p(key points at object, place)    where the demonstration's crops were cut
      + play     (Stage 1's loss)                      on windows of play in every batch

With action tokens it is L_pred alone, their cross-entropy. With a motion prior (arXiv 2606.26095, Stage 2) it is

    L = L_pred + lambda(k) (L_align + L_recon),      lambda(k) = max(0, 1 - k / decay_steps)

    L_pred    flow matching of the demonstrated chunk from the latent that the policy predicts
    L_align   distance of that latent to the encoder's, without gradient into the encoder's
    L_recon   flow matching from the encoder's latent: preserves the geometry that the prior has learned
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tap_ray.models.batch import Batch, moved, of_play, without
from tap_ray.models.build import Network
from tap_ray.models.heads import masked_mse
from tap_ray.models.pointing import POINT_WEIGHT, pointing_loss
from tap_ray.models.reach import reach_loss, shown, shown_mask
from tap_ray.training.accumulation import num_predicted, shared
from tap_ray.training.batches import CROPS


@dataclass(frozen=True, kw_only=True)
class CloningWeights:
    """Weights of the auxiliary losses; the loss of the demonstrated action has weight 1. 0 turns a loss off."""

    reach: float = 0.0
    """Regression of the end effector's displacement after the next steps, at the next contact and at its end."""
    crops: float = 0.0
    """Cloning of the same demonstrations, conditioned on crops of their objects and places as in Stage 1 instead of the
    instruction. Needs robot masks."""
    context: float = 0.0
    """Distance between the context vector of the instruction and that of its crops. Needs robot masks."""
    point: float = 0.0
    """Supervision of the first two key points: they point at the object and at the place of the demonstration's
    crops."""
    play: float = 0.3
    """Stage 1's loss on the play of --play; without --play it is not used."""

    @property
    def asks_crops(self) -> bool:
        """Whether a loss conditions the policy on the demonstrations' own crops."""
        return self.crops > 0 or self.context > 0

    @property
    def need_crops(self) -> bool:
        """Whether a loss needs the crops of the demonstrations."""
        return self.asks_crops or self.point > 0


@dataclass(frozen=True, kw_only=True)
class BehaviorCloning:
    """The objective; `fit` calls its loss."""

    policy: Network
    """The model without DDP or compilation wrappers; its statistics normalize the targets."""
    tokens_UL: Tensor
    """Ids of the dataset's U sentences, by task_index; see `language.encode`."""
    weights: CloningWeights = field(default_factory=CloningWeights)
    name: str = "bc"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and its terms: "bc/loss", the squared error of the whole normalized chunk, and the
        terms whose weight is above 0."""
        weights, seen = self.weights, batch | instructed(batch, self.tokens_UL)
        if not weights.asks_crops:  # no loss uses the demonstrations' crops
            seen = without(seen, *CROPS)
        parts = self._parts(model(seen), batch)
        factor = {"loss": 1.0, "reach": weights.reach, "crops": weights.crops, "context": weights.context}
        factor |= {"point": weights.point, "play_point": weights.play * POINT_WEIGHT}
        factor |= {"play_action": weights.play, "play_reach": weights.play}
        total = torch.stack([factor[name] * value for name, value in parts.items()]).sum()
        return total, {f"{self.name}/{name}": value for name, value in parts.items()}

    def _parts(self, out: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        target, mask = self.policy.action_scale(batch["action"]), batch["action_mask"]
        parts = {"loss": masked_mse(out["action"], target, mask)}
        if "reach" in batch and "reach" in out:
            parts["reach"] = reach_loss(self.policy, out["reach"], batch)
        if "crop_action" in out:
            seen_N = moved(batch["crop_mask"][:, 0], mask.device)
            parts["crops"] = masked_mse(out["crop_action"], target, mask & seen_N[:, None])
            if "reach" in batch and "crop_reach" in out:
                parts["crops_reach"] = reach_loss(self.policy, out["crop_reach"], batch, shown(batch["crop_mask"]))
            if "crop_context" in out:
                parts["context"] = masked_mse(out["sentence_context"], out["crop_context"].detach(), seen_N)
        if self.weights.point:
            parts["point"] = pointing_loss(out["keypoint_logprob"], batch)
        if "play_action" in out:
            play = of_play(batch)
            target_play = self.policy.action_scale(play["action"])
            parts["play_action"] = masked_mse(out["play_action"], target_play, play["action_mask"])
            if "play_keypoint_logprob" in out:
                parts["play_point"] = pointing_loss(out["play_keypoint_logprob"], play)
            if "play_reach" in out:
                parts["play_reach"] = reach_loss(self.policy, out["play_reach"], play, shown(play["crop_mask"]))
        parts = {name: shared(batch, name, mean) for name, mean in parts.items()}
        if "crops_reach" in parts:
            parts["crops"] = parts["crops"] + parts.pop("crops_reach")
        return parts

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """See `accumulation.Counted`."""
        mask, play = batch["action_mask"], of_play(batch)
        found = {"loss": mask.sum()}
        if "reach" in batch:
            found["reach"] = batch["reach_mask"].sum()
        if self.weights.asks_crops:
            seen_N = moved(batch["crop_mask"][:, 0], mask.device)
            found |= {"crops": (mask & seen_N[:, None]).sum(), "context": seen_N.sum()}
            if "reach" in batch:
                found["crops_reach"] = shown_mask(batch, shown(batch["crop_mask"])).sum()
        if self.weights.point:
            found["point"] = batch["crop_px_mask"].sum()
        if play:
            found |= {"play_action": play["action_mask"].sum(), "play_point": play["crop_px_mask"].sum()}
            if "reach" in play:
                found["play_reach"] = shown_mask(play, shown(play["crop_mask"])).sum()
        return found


@dataclass(frozen=True, kw_only=True)
class OwnLoss:
    """The objective of a head that computes its own loss: flow matching, with or without a motion prior, or the
    cross-entropy of action tokens."""

    policy: Network
    """The model without DDP or compilation wrappers."""
    tokens_UL: Tensor
    """Ids of the dataset's U instructions, by task_index; see `language.encode`."""
    decay_steps: int
    """Number of updates until lambda is zero; 0 if there is no motion prior."""
    name: str = "bc"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and its terms. "bc/loss" is L_pred, so that it means the same with and without a
        prior."""
        weight = decayed(int(batch["step"]), self.decay_steps) if "step" in batch else 0.0
        if not weight:
            batch = without(batch, "chunk_state")
        out = model(batch | instructed(batch, self.tokens_UL))
        pred = shared(batch, "pred", out["pred"])
        if not weight:
            return pred, {"bc/loss": pred}
        recon = shared(batch, "pred", out["recon"])
        return pred + weight * (out["align"] + recon), {"bc/loss": pred, "bc/align": out["align"], "bc/recon": recon}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """See `accumulation.Counted`."""
        return {"pred": num_predicted(self.policy, batch, batch["action_mask"])}


def decayed(step: int, decay_steps: int) -> float:
    """lambda(k) = max(0, 1 - k / decay_steps); 0 for `decay_steps` 0."""
    return max(0.0, 1 - step / decay_steps) if decay_steps else 0.0


def instructed(batch: Batch, tokens_UL: Tensor) -> Batch:
    """The distinct instructions of this batch, and for each row the index of its instruction."""
    present, sentence = batch["task_index"].unique(return_inverse=True)
    device = batch.get("rgb", batch["task_index"]).device
    return {"tokens": tokens_UL[present].to(device, non_blocking=True), "sentence": sentence}
