"""Stage 2: which action does this instruction ask for, here?

With a regression head behaviour cloning, with the head and loss of Stage 1. With a motion prior (METHOD.md B)

    L = L_pred + lambda(k) (L_align + L_recon),      lambda(k) = max(0, 1 - k / decay_steps)

    L_pred    flow matching of the demonstrated chunk from the latent that the policy predicts
    L_align   that latent to the encoder's, which stands still
    L_recon   flow matching from the encoder's latent: keeps the geometry that the prior has learnt
"""

from dataclasses import dataclass

from torch import Tensor, nn

from tap_ray.models.heads import masked_mse
from tap_ray.models.policy import TapPolicy
from tap_ray.training.batches import Batch


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning:
    """The objective; `fit` calls its loss."""

    policy: TapPolicy
    """Bare model: its statistics normalise the targets."""
    tokens_UL: Tensor
    """Ids of the data set's U sentences, by task_index; see `language.encode`."""
    name: str = "bc"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and "bc/loss": squared error of the whole chunk, normalised."""
        out = model(batch | instructed(batch, self.tokens_UL))
        loss = masked_mse(out["action"], self.policy.action_scale(batch["action"]), batch["action_mask"])
        return loss, {"bc/loss": loss}


@dataclass(frozen=True, kw_only=True)
class FlowCloning:
    """The objective with a flow head, with or without a motion prior."""

    tokens_UL: Tensor
    """Likewise."""
    decay_steps: int
    """Updates until lambda is zero; 0: there is no prior whose geometry could be kept."""
    name: str = "bc"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and its parts. "bc/loss" is L_pred, so that it means the same with and without a prior."""
        weight = decayed(int(batch["step"]), self.decay_steps) if "step" in batch else 0.0
        if not weight:
            batch = {name: value for name, value in batch.items() if name != "chunk_state"}
        out = model(batch | instructed(batch, self.tokens_UL))
        if not weight:
            return out["pred"], {"bc/loss": out["pred"]}
        loss = out["pred"] + weight * (out["align"] + out["recon"])
        return loss, {"bc/loss": out["pred"], "bc/align": out["align"], "bc/recon": out["recon"]}


def decayed(step: int, decay_steps: int) -> float:
    """lambda(k) = max(0, 1 - k / decay_steps), METHOD.md B; 0 for `decay_steps` 0."""
    return max(0.0, 1 - step / decay_steps) if decay_steps else 0.0


def instructed(batch: Batch, tokens_UL: Tensor) -> Batch:
    """The sentences that this batch names, each once, and which of them is each row's."""
    present, sentence = batch["task_index"].unique(return_inverse=True)
    return {"tokens": tokens_UL.to(batch["task_index"].device)[present], "sentence": sentence}
