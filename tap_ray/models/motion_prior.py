"""The motion prior of arXiv 2606.26095: a flow-matching model of action chunks. No images, no language.

    s a s a ... s a  -> encoder -> z, one point on the unit sphere
    noise, time, z   -> decoder -> velocity; integrated from noise to the action chunk

Flow matching (Lipman et al. 2023, arXiv 2210.02747) with the linear path x = (1 - t) noise + t action, whose velocity
is action - noise. Actions and states are normalized and laid out as specs.UNIFIED_*; a mask selects a robot's own dims,
and all others are ignored. N batch, H steps, A action dims, S state dims, L latent, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.conf import Suppress

from tap_ray.errors import ConfigError
from tap_ray.models.batch import MotionBatch
from tap_ray.models.trunk import Trunk
from tap_ray.specs import UNIFIED_ACTION, UNIFIED_STATE

NUM_ACTIONS, NUM_STATES = len(UNIFIED_ACTION), len(UNIFIED_STATE)
"""Sizes of the unified layout of all robots."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Sizes of the prior, and how its flow is trained and integrated. Only `chunk` is stated in the paper."""

    chunk: int = 15
    """Number of actions that one latent encodes (H)."""
    latent: int = 96
    """Size of the latent (L)."""
    width: int = 96
    """Channels of encoder and decoder (D)."""
    num_layers: int = 2
    """Layers of the encoder, and of the decoder."""
    num_heads: int = 4
    """Attention heads of a layer."""
    encoder: Literal["state_action", "action"] = "state_action"
    """Input of the encoder. In the paper states help (+3.7 points, against +0.8 without)."""
    time: Literal["uniform", "beta"] = "uniform"
    """How the flow's time is drawn in training. "beta": Beta(1, 1.5), more often near the noise, as in pi0 (arXiv
    2410.24164, appendix B)."""
    num_steps: int = 5
    """Euler steps from noise to action."""
    num_actions: Suppress[int] = NUM_ACTIONS
    num_states: Suppress[int] = NUM_STATES

    def __post_init__(self) -> None:
        if not self.num_heads or self.width % self.num_heads:
            raise ConfigError(
                f"prior.width must be a multiple of prior.num_heads; got {self.width} and {self.num_heads}."
            )


class MotionEncoder(nn.Module):
    """An action chunk, with its states -> one latent."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.action_in = nn.Linear(config.num_actions, width)
        self.state_in = nn.Linear(config.num_states, width) if config.encoder == "state_action" else None
        self.pos_embed = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        self.trunk = Trunk(width=width, num_layers=config.num_layers, num_heads=config.num_heads)
        num_tokens = config.chunk * (1 if self.state_in is None else 2)
        self.out = nn.Linear(num_tokens * width, config.latent)

    def forward(self, action_NHA: Tensor, state_NHS: Tensor, step_NH: Tensor) -> Tensor:
        """(N, L) latents of length 1.

        Args:
            action_NHA: normalized, zero at padding.
            state_NHS: the state before each action, likewise.
            step_NH: bool, False for steps that are not there (behind an episode's end, before its beginning). At most
                a chunk of steps; a shorter one takes the last positions.
        """
        pos_embed = self.pos_embed[-action_NHA.shape[1] :]
        tokens = [self.action_in(action_NHA) + pos_embed]
        if self.state_in is not None:
            tokens.insert(0, self.state_in(state_NHS) + pos_embed)
        interleaved = torch.stack(tokens, dim=2).flatten(1, 2)
        key_padding_mask = (~step_NH)[:, :, None].expand(-1, -1, len(tokens)).flatten(1, 2)
        read = self.trunk(interleaved, key_padding_mask).masked_fill(key_padding_mask[:, :, None], 0.0).flatten(1)
        read = F.pad(read, (self.out.in_features - read.shape[1], 0))  # each token keeps its position, as in the policy
        return F.normalize(self.out(read).float(), dim=-1)


class FlowDecoder(nn.Module):
    """A latent -> an action chunk, by integrating a learned velocity."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.action_in = nn.Linear(config.num_actions, width)
        self.mask_in = nn.Linear(config.num_actions, width)
        self.latent_in = nn.Linear(config.latent, config.chunk * width)
        self.time_in = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.ReLU(), nn.Linear(width, width))
        self.pos_embed = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        self.trunk = Trunk(width=width, num_layers=config.num_layers, num_heads=config.num_heads)
        self.out = nn.Linear(width, config.num_actions)

    def velocity(self, noisy_NHA: Tensor, time_N: Tensor, latent_NL: Tensor, mask_NA: Tensor) -> Tensor:
        """(N, H, A) float32 velocity, zero at padding.

        Args:
            noisy_NHA: points on the way from noise to action; padding is ignored.
            time_N: how far on the way, 0 noise .. 1 action.
            latent_NL: from the encoder, or predicted.
            mask_NA: bool, the robot's own dims.
        """
        mask_N1A = mask_NA[:, None].to(noisy_NHA.dtype)
        spread_NL = latent_NL * self.config.latent**0.5  # numbers of size one
        condition = self.mask_in(mask_N1A[:, 0]) + self.time_in(sinusoidal_embedding(time_N))
        latent_tokens = self.latent_in(spread_NL).unflatten(-1, (self.config.chunk, -1))
        tokens = self.action_in(noisy_NHA * mask_N1A) + self.pos_embed + latent_tokens + condition[:, None]
        return self.out(self.trunk(tokens)).float() * mask_N1A

    def sample(self, latent_NL: Tensor, mask_NA: Tensor, noise_NHA: Tensor, num_steps: int | None = None) -> Tensor:
        """(N, H, A) normalized actions: Euler's method from `noise_NHA`, zero at padding."""
        steps = num_steps or self.config.num_steps
        x = noise_NHA * mask_NA[:, None]
        for step in range(steps):
            x = x + self.velocity(x, torch.full_like(x[:, 0, 0], step / steps), latent_NL, mask_NA) / steps
        return x

    def loss(self, action_NHA: Tensor, latent_NL: Tensor, mask_NA: Tensor, step_NH: Tensor) -> Tensor:
        """Mean squared error of the velocity at a random time, over the robot's own dims and present steps, a scalar.

        Args:
            action_NHA: normalized, zero at padding.
            latent_NL: from the encoder, or predicted.
            mask_NA: bool, the robot's own dims.
            step_NH: bool, False for steps that are not there.
        """
        noise = torch.randn_like(action_NHA)
        time = self.draw_times(len(action_NHA), action_NHA.device)
        noisy = noise + time[:, None, None] * (action_NHA - noise)
        guess = self.velocity(noisy, time, latent_NL, mask_NA)
        counts = mask_NA[:, None] & step_NH[:, :, None]
        squared = torch.where(counts, (guess - (action_NHA - noise)) ** 2, 0.0)
        return squared.sum() / counts.sum().clamp_min(1)

    def draw_times(self, num: int, device: torch.device) -> Tensor:
        """Draw (num,) times in [0, 1)."""
        uniform = torch.rand(num, device=device)
        return uniform if self.config.time == "uniform" else 1 - (1 - uniform) ** (1 / 1.5)


NUM_FREQUENCIES = 16
"""Number of pairs of sine and cosine that encode the time."""


def sinusoidal_embedding(time_N: Tensor) -> Tensor:
    """(N, 2 FREQUENCIES) sines and cosines of the time, from one period in [0, 1] to 1000 (log-spaced)."""
    rate = torch.logspace(0, 3, NUM_FREQUENCIES, device=time_N.device)
    angle = 2 * torch.pi * time_N[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class MotionPrior(nn.Module):
    """Encoder and decoder, trained together as an auto-encoder of motion."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = MotionEncoder(config), FlowDecoder(config)

    def forward(self, batch: MotionBatch) -> dict[str, Tensor]:
        """
        Args:
            batch: "action" (N, H, A) and "state" (N, H, S) normalized and unified, "step_mask" (N, H) bool,
                "dim_mask" (N, A) bool.

        Returns:
            "loss", a scalar, and "latent" (N, L).
        """
        latent_NL = self.encoder(batch["action"], batch["state"], batch["step_mask"])
        loss = self.decoder.loss(batch["action"], latent_NL, batch["dim_mask"], batch["step_mask"])
        return {"loss": loss, "latent": latent_NL}
