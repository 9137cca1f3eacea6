"""The policy of both stages: one sequence, one head. N batch, P image tokens, L context tokens, D width, H chunk.

    image at t -> VisionTower             -> P tokens -+
    learnt action queries                 -> Q tokens -+-> Trunk -> read-out -> head -> (N, H, A) normalised actions
    context: goal image | instruction     -> L tokens -+          (regression; or latent of motion -> flow decoder)
    history -> encoder of a motion prior  -> 1 token  -+  (optional)

Stage 2 swaps the context and nothing else: L is the same in both. The read-out keeps every token's place (flattened,
not averaged), without which a small policy never learnt *where* things are (SPIKE.md).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import ConfigError
from tap_ray.models.heads import FlowHead, RegressionHead
from tap_ray.models.language import LanguageConfig, TextEncoder
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.scale import Scale
from tap_ray.models.trunk import Trunk
from tap_ray.models.vision import GREY, GREY_STEP, VisionConfig, VisionTower

DIFFERENCE_STEP = 16
"""Grey levels of change between two images that count as 1."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Sizes of the policy. Fields that start with `num_` are counts."""

    context: Literal["goal", "language"] = "goal"
    """What says what to do: Stage 1 a goal image, Stage 2 an instruction."""
    image_size: int = 96
    """Side of the square camera image, px."""
    chunk: int = 4
    """Actions predicted at once (H)."""
    execute: int = 2
    """Actions of a chunk that are carried out before the policy looks again, 1 .. chunk."""
    num_actions: int = 7
    """Slots of an action (A)."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """Tower of the image at t."""
    goal: Literal["pair", "change"] = "pair"
    """What the goal stem reads. "pair": image at t and goal minus it, stacked: motion between frames is smaller than a
    pixel, so the two must meet before anything is thrown away. "change": goal minus image at t alone, so that what the
    robot is doing now can only come from the tower that Stage 2 keeps."""
    goal_stem: VisionConfig = field(default_factory=lambda: VisionConfig(widths=(32, 64, 64)))
    """Tower of the goal."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Text encoder."""
    width: int = 128
    """Channels of the trunk."""
    num_layers: int = 2
    """Layers of the trunk."""
    num_heads: int = 2
    """Attention heads of a layer."""
    num_context: int = 16
    """Context tokens (L): words of an instruction, or mixtures of the goal stem's cells."""
    num_queries: int = 4
    """Learnt action queries."""
    readout: int = 32
    """Channels each token keeps in the flattened read-out."""
    head_width: int = 512
    """Hidden units of the head."""
    head: Literal["regression", "flow"] = "regression"
    """"regression": the whole chunk at once. "flow": a latent of motion, and a motion prior's decoder from there."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Sizes of the motion prior in a flow head; those of the run that --prior names."""
    history: int = 0
    """Past steps (P) that the prior's encoder sums up in one token; 0 none. Needs a flow head."""
    num_motion_states: int = 0
    """State slots that the prior's encoder reads: all that the robot has with a flow head."""
    num_reach: int = 0
    """Reach targets (R) regressed beside the action in Stage 1; 0 builds no reach head."""
    num_state: int = 0
    """Proprioception slots, added to every image token; 0 uses the image alone, as the paper does."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"policy.num_heads {self.num_heads} does not divide policy.width {self.width}.")
        if min(self.chunk, self.execute, self.num_context) < 1:
            raise ConfigError("policy.chunk, policy.execute and policy.num_context are at least 1.")
        if self.history and self.head != "flow":
            raise ConfigError(
                "A history is summed up by a motion prior: --history needs --prior, or --policy.head flow."
            )
        if not 0 <= self.history <= self.prior.chunk:
            raise ConfigError(f"history lies in 0 .. {self.prior.chunk} (the prior's chunk); got {self.history}.")


@dataclass(frozen=True, kw_only=True)
class Towers:
    """`transformers` configs of the towers, so that a saved policy loads without its hub."""

    vision: PretrainedConfig
    goal_stem: PretrainedConfig | None = None
    language: PretrainedConfig | None = None


class TapPolicy(nn.Module):
    """Images and a context in, normalised action chunks (and reach targets) out."""

    def __init__(self, config: PolicyConfig, towers: Towers, *, load_weights: bool = True) -> None:
        """
        Args:
            config: sizes.
            towers: the towers' own configs; see `build.py`.
            load_weights: fetch the weights of pretrained towers; False when a checkpoint follows anyway.
        """
        super().__init__()
        self.config, self.towers = config, towers
        size, width = config.image_size, config.width
        self.action_scale = Scale(config.num_actions)
        self.vision = VisionTower(config.vision, towers.vision, image_size=size, load_weights=load_weights)
        self.vision_in = nn.Linear(self.vision.channels, width)
        self.place = _learnt(self.vision.num_tokens, width)
        self.queries = _learnt(config.num_queries, width)
        if config.context == "goal":
            assert towers.goal_stem is not None
            self.goal = VisionTower(config.goal_stem, towers.goal_stem, image_size=size, load_weights=False, raw=False)
            self.context_in = nn.Linear(self.goal.channels, width)
            self.mix = nn.Linear(self.goal.num_tokens, config.num_context)
        else:
            assert towers.language is not None
            self.language = TextEncoder(config.language, towers.language, load_weights=load_weights)
            self.context_in = nn.Linear(self.language.channels, width)
        if config.num_state:
            self.state_scale = Scale(config.num_state)
            self.state_in = nn.Linear(config.num_state, width)
        self.context_place = _learnt(config.num_context, width)
        self.trunk = Trunk(width=width, num_layers=config.num_layers, num_heads=config.num_heads)
        self.squeeze = nn.Linear(width, config.readout)
        num_tokens = self.vision.num_tokens + config.num_queries + config.num_context + bool(config.history)
        features, sizes = num_tokens * config.readout, {"width": config.head_width, "num_actions": config.num_actions}
        if config.head == "regression":
            self.head = RegressionHead(features=features, chunk=config.chunk, **sizes)
        else:
            self.head = FlowHead(features=features, prior=config.prior, num_states=config.num_motion_states, **sizes)
        if config.history:
            self.history_in = nn.Linear(config.prior.latent, width)
        if config.num_reach:
            self.reach_scale = Scale(config.num_reach)
            self.reach = nn.Sequential(
                nn.Linear(features, config.head_width), nn.ReLU(), nn.Linear(config.head_width, config.num_reach)
            )

    def set_norm(self, norm: NormStats) -> None:
        """Take over the statistics to normalise with."""
        self.action_scale.set(norm.action.offset, norm.action.scale)
        if self.config.num_state:
            self.state_scale.set(norm.state.offset, norm.state.scale)
        if isinstance(self.head, FlowHead):
            self.head.state_scale.set(norm.state.offset, norm.state.scale)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            batch: "rgb" (N, Y, X, 3) uint8; "goal_rgb" likewise, or "tokens" (U, L) and "sentence" (N,) row of it;
                "state" (N, S) with `num_state`; "past_action", "past_state" and "past_mask" with `history` (without
                them it does as if it had no memory); optional "jitter" (N, 2). With a flow head optional "noise"
                (N, H, A), and the targets "action", "action_mask" and "chunk_state", see `FlowHead.losses`.

        Returns:
            "action" (N, H, A) normalised, and with a reach head "reach" (N, R) normalised. A flow head gives "action"
            in evaluation mode only, and the parts of its loss where there are targets: with a history, the means with
            and without it.
        """
        now = _floats(batch["rgb"], batch.get("jitter"))
        image_NPD = self.vision_in(self.vision(now)) + self.place
        context_NLD, hidden_NL = self._context(batch, now)
        if self.config.num_state:
            image_NPD = image_NPD + self.state_in(self.state_scale(batch["state"]))[:, None]
        if self.config.history:
            context_NLD, hidden_NL = self._remember(batch, context_NLD, hidden_NL)
            image_NPD = image_NPD.repeat(len(context_NLD) // len(image_NPD), 1, 1)
        read_NF = self._read(image_NPD, context_NLD, hidden_NL)
        out = {"action": self.head(read_NF)} if self.config.head == "regression" else self._flow(read_NF, batch)
        if self.config.num_reach:
            out["reach"] = self.reach(read_NF)
        return out

    def _context(self, batch: dict[str, Tensor], now: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, L, D) tokens of the goal or of the instruction, and (N, L) True at padding."""
        if self.config.context == "goal":
            goal = _floats(batch["goal_rgb"], batch.get("jitter"))
            # A difference of a few grey levels is the whole signal: bring it to the size of an image.
            change = (goal - now) / DIFFERENCE_STEP
            seen = torch.cat([(now - GREY) / GREY_STEP, change], dim=1) if self.config.goal == "pair" else change
            return self.context_in(self.mix(self.goal(seen).mT).mT) + self.context_place, None
        tokens_ULD = self.context_in(self.language(batch["tokens"])) + self.context_place
        return tokens_ULD[batch["sentence"]], (batch["tokens"] < 0)[batch["sentence"]]

    def _remember(
        self, batch: dict[str, Tensor], context_NLD: Tensor, hidden_NL: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The context and one token of history behind it; in training the same rows once more without it."""
        assert isinstance(self.head, FlowHead)
        if hidden_NL is None:
            hidden_NL = torch.zeros(context_NLD.shape[:2], dtype=torch.bool, device=context_NLD.device)
        without = nn.functional.pad(hidden_NL, (0, 1), value=True)
        if "past_action" not in batch:
            return nn.functional.pad(context_NLD, (0, 0, 0, 1)), without
        past = self.action_scale(batch["past_action"])
        latent_NL = self.head.encode(past, batch["past_state"], batch["past_mask"])
        token_N1D = self.history_in(latent_NL)[:, None].to(context_NLD.dtype)
        context = torch.cat([context_NLD, token_N1D], dim=1)
        with_it = nn.functional.pad(hidden_NL, (0, 1), value=False)
        if not self.training:
            return context, with_it
        return context.repeat(2, 1, 1), torch.cat([with_it, without])

    def _flow(self, read_NF: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses where there are targets, actions in evaluation mode; see `forward`."""
        assert isinstance(self.head, FlowHead)
        latent_NL, out = self.head(read_NF), {}
        if "action" in batch:
            times = len(latent_NL) // len(batch["action"])
            action, state = self.action_scale(batch["action"]).repeat(times, 1, 1), batch.get("chunk_state")
            state = None if state is None else state.repeat(times, 1, 1)
            out |= self.head.losses(latent_NL, action, batch["action_mask"].repeat(times, 1), state)
        if not self.training:
            out["action"] = self.head.act(latent_NL, batch.get("noise"))
        return out

    def _read(self, image_NPD: Tensor, context_NLD: Tensor, hidden_NL: Tensor | None) -> Tensor:
        """(N, F) features for the heads."""
        num, dtype = len(image_NPD), image_NPD.dtype
        sequence = torch.cat([image_NPD, self.queries.expand(num, -1, -1).to(dtype), context_NLD.to(dtype)], dim=1)
        if hidden_NL is None:
            return self.squeeze(self.trunk(sequence)).flatten(1)
        num_seen = sequence.shape[1] - hidden_NL.shape[1]
        hidden_NS = nn.functional.pad(hidden_NL, (num_seen, 0), value=False)
        read_NSr = self.squeeze(self.trunk(sequence, hidden_NS))
        return read_NSr.masked_fill(hidden_NS[..., None], 0.0).flatten(1)


def _learnt(num: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, num, width) * 0.02)


def _floats(rgb_NYXC: Tensor, jitter_N2: Tensor | None) -> Tensor:
    """(N, Y, X, 3) uint8 -> (N, 3, Y, X) floats 0 .. 255, a view in channels_last.

    In bfloat16 where products are: it holds 0 .. 255, and the steps below are powers of two, so nothing is rounded.
    """
    kind = rgb_NYXC.device.type
    half = torch.is_autocast_enabled(kind)
    x = rgb_NYXC.permute(0, 3, 1, 2).to(torch.get_autocast_dtype(kind) if half else torch.float32)
    if jitter_N2 is not None:
        contrast, brightness = jitter_N2.to(x.dtype)[:, :, None, None, None].unbind(1)
        x = (x - GREY) * (1 + contrast) + (GREY + 255 * brightness)
    return x
