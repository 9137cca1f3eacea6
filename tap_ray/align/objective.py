"""Stage 2: which action does this instruction ask for, here? Behaviour cloning with the head and loss of Stage 1."""

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
        present, sentence = batch["task_index"].unique(return_inverse=True)
        tokens = self.tokens_UL.to(batch["task_index"].device)[present]
        out = model(batch | {"tokens": tokens, "sentence": sentence})
        loss = masked_mse(out["action"], self.policy.action_scale(batch["action"]), batch["action_mask"])
        return loss, {"bc/loss": loss}
