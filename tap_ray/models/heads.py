"""Predicts action chunks from the readout: N batch, F features, H steps, A action slots, S state slots, L latent."""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tap_ray.models.batch import Batch
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.normalizer import Normalizer
from tap_ray.specs import UNIFIED_ACTION, UNIFIED_STATE, RobotSpec, unified_indices


class RegressionHead(nn.Module):
    """Predicts a whole chunk of normalized actions from the readout.

    The gripper is a slot like any other (absolute, +1 open, -1 closed, not rescaled): trained by the same squared
    error as in the paper (arXiv 2607.02466); at deployment its sign decides.
    """

    def __init__(self, *, features: int, chunk: int, num_actions: int) -> None:
        super().__init__()
        self.chunk, self.num_actions = chunk, num_actions
        self.out = nn.Linear(features, chunk * num_actions)

    def forward(self, read_NF: Tensor) -> Tensor:
        """(N, H, A) normalized actions."""
        return self.out(read_NF).unflatten(-1, (self.chunk, self.num_actions))


class LayerMix(nn.Module):
    """A learned mean of the hidden states behind each of K layers, each normalized, as ELMo's scalar mix (arXiv
    1802.05365, equation 1) with a softmax over layers; all weigh the same at first."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden_KNLD: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """(N, L, D)."""
        weights_K = self.logit.softmax(0)
        parts = zip(weights_K, hidden_KNLD, strict=True)
        return torch.stack(
            [weight * F.layer_norm(hidden.to(dtype), hidden.shape[-1:]) for weight, hidden in parts]
        ).sum(0)


class FlowHead(nn.Module):
    """Predicts a latent of motion, which the decoder of a motion prior turns into actions (arXiv 2606.26095, Stage 2).

    The prior uses the unified layout of all robots; this head converts its robot's numbers to it.
    """

    action_index: Tensor
    state_index: Tensor

    def __init__(self, *, features: int, width: int, prior: PriorConfig, num_actions: int, num_states: int) -> None:
        super().__init__()
        self.latent = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, prior.latent))
        self.prior = MotionPrior(prior)
        self.state_scale = Normalizer(num_states)
        self.register_buffer("action_index", torch.arange(num_actions))
        self.register_buffer("state_index", torch.arange(num_states))

    def set_layout(self, spec: RobotSpec) -> None:
        """Set where this robot's slots lie in the unified layout.

        Raises:
            SpecError: it does not fit.
        """
        self.action_index.copy_(torch.tensor(unified_indices(spec.action, UNIFIED_ACTION)))
        self.state_index.copy_(torch.tensor(unified_indices(spec.state, UNIFIED_STATE)))

    def forward(self, read_NF: Tensor) -> Tensor:
        """(N, L) latents of length 1."""
        return F.normalize(self.latent(read_NF).float(), dim=-1)

    def encode(self, action_NHA: Tensor, state_NHS: Tensor, step_NH: Tensor) -> Tensor:
        """(N, L) latents of this robot's motion: normalized actions, states in physical units."""
        state = _laid_out(self.state_scale(state_NHS), self.state_index, len(UNIFIED_STATE))
        return self.prior.encoder(self.unified(action_NHA), state, step_NH)

    def unified(self, action_NHA: Tensor) -> Tensor:
        """(N, H, A) normalized actions of this robot -> (N, H, UNIFIED_ACTION slots), zeros at padding."""
        return _laid_out(action_NHA, self.action_index, len(UNIFIED_ACTION))

    def dim_mask(self, num: int) -> Tensor:
        """(num, dims) bool, this robot's own action dims."""
        mask = torch.zeros(len(UNIFIED_ACTION), dtype=torch.bool, device=self.action_index.device)
        mask[self.action_index] = True
        return mask.expand(num, -1)

    def losses(
        self, latent_NL: Tensor, action_NHA: Tensor, step_NH: Tensor, state_NHS: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms of the loss (arXiv 2606.26095, Stage 2).

        Args:
            latent_NL: predicted latents, one for each chunk.
            action_NHA: normalized.
            step_NH: bool, False behind the episode's end.
            state_NHS: before each action, physical units; None leaves "align" and "recon" out.

        Returns:
            Scalars: "pred", flow matching from the predicted latent; "align", squared distance to the encoder's latent,
            without gradient into the encoder; "recon", flow matching from the encoder's latent.
        """
        action, mask = self.unified(action_NHA), self.dim_mask(len(action_NHA))
        parts = {"pred": self.prior.decoder.loss(action, latent_NL, mask, step_NH)}
        if state_NHS is None:  # every parameter must take part in every step; otherwise workers wait for each other
            idle = torch.stack([value.sum() for value in self.prior.encoder.parameters()]).sum()
            return {"pred": parts["pred"] + 0.0 * idle}
        seen_NL = self.encode(action_NHA, state_NHS, step_NH)
        parts["align"] = ((latent_NL - seen_NL.detach()) ** 2).sum(-1).mean()
        parts["recon"] = self.prior.decoder.loss(action, seen_NL, mask, step_NH)
        return parts

    def act(self, latent_NL: Tensor, noise_NHA: Tensor | None = None) -> Tensor:
        """(N, H, A) normalized actions of this robot; the noise is drawn unless given."""
        if noise_NHA is None:
            shape = (len(latent_NL), self.prior.config.chunk, len(self.action_index))
            noise_NHA = torch.randn(shape, device=latent_NL.device)
        noise = self.unified(noise_NHA)
        return self.prior.decoder.sample(latent_NL, self.dim_mask(len(noise)), noise)[..., self.action_index]


def flow_outputs(
    head: FlowHead, read_NF: Tensor, batch: Batch, action_scale: Normalizer, *, acts: bool
) -> dict[str, Tensor]:
    """The losses of a flow head if the batch has targets, and "action" if it `acts`.

    Args:
        head: the head.
        read_NF: the readout; if it has a multiple of the batch's rows, the targets are repeated.
        batch: "action", "action_mask" and "chunk_state" as in `FlowHead.losses`; optional "noise" (N, H, A).
        action_scale: normalizes the targets.
        acts: whether to compute actions.
    """
    latent_NL, out = head(read_NF), {}
    if "action" in batch:
        times = len(latent_NL) // len(batch["action"])
        action, state = action_scale(batch["action"]).repeat(times, 1, 1), batch.get("chunk_state")
        state = None if state is None else state.repeat(times, 1, 1)
        out |= head.losses(latent_NL, action, batch["action_mask"].repeat(times, 1), state)
    return out | ({"action": head.act(latent_NL, batch.get("noise"))} if acts else {})


def _laid_out(values: Tensor, indices: Tensor, num: int) -> Tensor:
    spread = values.new_zeros(*values.shape[:-1], num)
    spread[..., indices] = values
    return spread


def before_goal(mask_NH: Tensor, k_N: Tensor) -> Tensor:
    """(N, H) bool: the steps in `mask_NH` that come before the second image, `k_N` steps ahead: later actions cannot be
    inferred from the two images."""
    return mask_NH & (torch.arange(mask_NH.shape[1], device=mask_NH.device) < k_N[:, None])


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the entries where `mask` is True, in float32; 0 where there are none.

    Args:
        predicted: any shape.
        target: same shape.
        mask: bool, same shape or one that broadcasts to it from the left: (N, H) for (N, H, A).
    """
    mask = mask.reshape(*mask.shape, *[1] * (target.ndim - mask.ndim)).expand_as(target)
    squared = (predicted.float() - target.float()) ** 2
    return torch.where(mask, squared, 0.0).sum() / mask.sum().clamp_min(1)
