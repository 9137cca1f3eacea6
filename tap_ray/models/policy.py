"""The policy of both stages: one tower, one set of key points, one head. N batch, H chunk, A action slots, C context.

    image --+-> VisionTower -> Join -> KeyPoints --+--> read-out -> head -> (N, H, A) normalized actions
            |                             ^   |    |    (MLP)       (regression; or latent of motion -> flow decoder)
            +-------------------------------> Glimpse of the first two points --+
                                          |        |       +-> reach (Stage 1's other targets)
    context: instruction | crops -> (N, C) --------+
    history -> encoder of a motion prior ----------+
    state (proprioception) ------------------------+

Stage 2 replaces the context and nothing else. In inverse dynamics both images pass through the same tower and key
points, without any context, and are combined only after them: f(phi(o_t), phi(o_{t+k})).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from tyro.conf import Suppress

from tap_ray.config import without_unused
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch, of_play
from tap_ray.models.cameras import OtherCameras
from tap_ray.models.context import CropContext, SentenceContext
from tap_ray.models.fast import TokensConfig
from tap_ray.models.glimpse import NUM_SEEN, SHRINKS, Glimpse
from tap_ray.models.heads import FlowHead, RegressionHead, flow_outputs
from tap_ray.models.keypoints import Join, KeyPoints
from tap_ray.models.language import LanguageConfig, TextEncoder
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.normalizer import Normalizer
from tap_ray.models.vision import VisionConfig, VisionTower, jittered
from tap_ray.models.vlm_config import VlmConfig

Context = Literal["goal", "crops", "language"]
SIDE_FEATURES = 32
"""Number of features that context, state and history each add to the key points in the readout."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Sizes of the policy. Fields that start with `num_` are counts."""

    context: Suppress[tuple[Context, ...]] = ("language",)
    """What the policy is conditioned on: in Stage 1 "goal" (inverse dynamics) or "crops" (next object), in Stage 2
    "language"."""
    image_size: int = 96
    """Side of the square camera images, px: that of the dataset's; to be given only with --plan before there is one."""
    num_cameras: Suppress[int] = 1
    """Number of cameras whose images are read together: those of the robot."""
    camera_towers: Literal["own", "shared"] = "own"
    """With several cameras: "own" for one vision tower per camera, "shared" for a single one. Each camera always has
    its own key points."""
    chunk: Suppress[int] = 4
    """Actions predicted at once (H)."""
    n_action_steps: int = 2
    """Actions of a chunk that are executed before the policy predicts the next chunk, 1 .. chunk. On the demonstrations
    of PyBullet's tasks a cloned policy with 1 stopped in most episodes; 2 and 4 did equally well."""
    num_actions: int = 7
    """Slots of an action (A): those of the dataset's robot; to be given only with --plan before there is one."""
    vlm: VlmConfig = field(default_factory=VlmConfig)
    """An image-text model as the backbone, in place of the parts from `vision` to `glimpse_px`."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """Tower of the images."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Text encoder."""
    num_context: int = 16
    """Largest number of tokens of an instruction."""
    context_width: int = 128
    """Size of the context vector (C)."""
    map_width: int = 64
    """Channels of the feature map that key points are computed from."""
    num_keypoints: int = 32
    """Key points; each is an x, a y and a presence. The first two learn to point at the object and at the place."""
    glimpse_px: int = 32
    """Side of the image windows around these two that are encoded once more, px: a multiple of 8; 0: none."""
    head_width: int = 256
    """Hidden units of the two layers of the action head."""
    head: Literal["regression", "flow", "tokens"] = "regression"
    """"regression": the whole chunk at once. "flow": a latent of motion, and a motion prior's decoder from there.
    "tokens": FAST action tokens one after another, with a VLM only."""
    tokens: TokensConfig = field(default_factory=TokensConfig)
    """Settings of a head of kind "tokens"."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Sizes of the motion prior in a flow head; those of the run that --prior names."""
    history: Suppress[int] = 0
    """Past steps (P) that the prior's encoder encodes into one vector; 0: none. Needs a flow head."""
    num_motion_states: Suppress[int] = 0
    """State slots that the prior's encoder reads: all that the robot has with a flow head."""
    num_reach: Suppress[int] = 0
    """Reach targets (R) regressed beside the action; 0 builds no reach head."""
    num_state: int = 1
    """Proprioception: slots of the state that the action head reads. Any number from 1 on means all of them; 0: the
    image alone, as in the paper."""

    def __post_init__(self) -> None:
        if self.glimpse_px % SHRINKS:
            raise ConfigError(f"policy.glimpse_px must be a multiple of {SHRINKS} px, or 0; got {self.glimpse_px}.")
        if self.history and self.head != "flow":
            raise ConfigError(
                "A history is encoded by a motion prior, so --history needs --prior or --policy.head flow."
            )
        if not 0 <= self.history <= self.prior.chunk:
            raise ConfigError(f"history must be in 0 .. {self.prior.chunk} (the prior's chunk); got {self.history}.")
        if not self.context:
            raise ConfigError('policy.context must name at least one of "goal", "crops" and "language".')


@dataclass(frozen=True, kw_only=True)
class Towers:
    """`transformers` configs of the towers, so that a saved policy loads without its hub."""

    vision: PretrainedConfig
    language: PretrainedConfig | None = None


class View(NamedTuple):
    """Images that are read under one context."""

    image_N3YX: Tensor  # levels 0 .. 255
    map_NWGG: Tensor  # joined feature maps of the tower
    other_NVWGG: Tensor  # those of the V other cameras
    context_NC: Tensor


class TapPolicy(nn.Module):
    """Images and a context in, normalized action chunks (and reach targets) out."""

    on_cpu: tuple[str, ...] = ()  # the entries of a batch that it reads on the CPU

    def __init__(self, config: PolicyConfig, towers: Towers, *, load_weights: bool = True) -> None:
        """
        Args:
            config: sizes.
            towers: the towers' own configs; see `build.py`.
            load_weights: fetch the weights of pretrained towers; False when a checkpoint follows anyway.
        """
        super().__init__()
        self.config, self.towers = config, towers
        self.frozen_parts: tuple[str, ...] = ()
        width = config.head_width
        self.action_scale = Normalizer(config.num_actions)
        self.vision = VisionTower(config.vision, towers.vision, image_size=config.image_size, load_weights=load_weights)
        self.join = Join(self.vision.channels, config.map_width)
        self.keypoints = KeyPoints(width=config.map_width, num=config.num_keypoints, context=config.context_width)
        if config.num_cameras > 1:
            self.cameras = OtherCameras(config, towers.vision, load_weights=load_weights)
        if config.glimpse_px:
            self.glimpse = Glimpse(config.glimpse_px)
        for part in (self.join, self.keypoints):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if "crops" in config.context:
            self.crops = CropContext(config.context_width)
        if "language" in config.context:
            assert towers.language is not None
            self.language = TextEncoder(config.language, towers.language, load_weights=load_weights)
            self.sentence = SentenceContext(self.language.channels, config.context_width)
        seen = 3 * config.num_keypoints * config.num_cameras + 2 * NUM_SEEN * bool(config.glimpse_px)
        if "goal" in config.context:
            self.pair = _mlp(2 * seen, width)
            self.pair_out = RegressionHead(features=width, chunk=config.chunk, num_actions=config.num_actions)
        if not acts(config):
            return
        self.context_in = nn.Linear(config.context_width, SIDE_FEATURES)
        if config.num_state:
            self.state_scale = Normalizer(config.num_state)
            self.state_in = nn.Linear(config.num_state, SIDE_FEATURES)
        if config.history:
            self.history_in = nn.Linear(config.prior.latent, SIDE_FEATURES)
        self.readout = _mlp(seen + SIDE_FEATURES * (1 + bool(config.num_state) + bool(config.history)), width)
        if config.head == "regression":
            self.head = RegressionHead(features=width, chunk=config.chunk, num_actions=config.num_actions)
        else:
            sizes = {"num_actions": config.num_actions, "num_states": config.num_motion_states}
            self.head = FlowHead(features=width, width=width, prior=config.prior, **sizes)
        if config.num_reach:
            self.reach_scale = Normalizer(config.num_reach)
            self.reach = nn.Linear(width, config.num_reach)

    def set_norm(self, norm: NormStats) -> None:
        """Set the statistics to normalize with."""
        self.action_scale.set(norm.action.offset, norm.action.scale)
        if self.config.num_state and acts(self.config):
            self.state_scale.set(norm.state.offset, norm.state.scale)
        if acts(self.config) and isinstance(self.head, FlowHead):
            self.head.state_scale.set(norm.state.offset, norm.state.scale)

    def freeze(self, part: str) -> None:
        """Stop a part (e.g. "vision", "keypoints") from changing, running statistics included."""
        self.get_submodule(part).requires_grad_(False).eval()
        self.frozen_parts += (part,)

    def train(self, mode: bool = True) -> "TapPolicy":
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen_parts:
            self.get_submodule(part).eval()
        return self

    @property
    def last(self) -> nn.Module:
        """The head that gives "action"."""
        return self.head if acts(self.config) else self.pair_out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """
        Args:
            batch: "rgb" (N, Y, X, 3) uint8, with several cameras "extra_rgb" (N, V, Y, X, 3) (and "goal_extra_rgb"
                beside "goal_rgb", "play_extra_rgb" beside "play_rgb"), and what says what to do; where there are
                several, in this order:
                "tokens" (U, L) and "sentence" (N,) row of it, an instruction;
                "object_crop", "place_crop" (N, y, x, 3) uint8 and "crop_mask" (N, 2);
                "goal_rgb", the image k steps later, for inverse dynamics, or "goal_row" (N,) int64, its row in "rgb".
                "play_rgb" and its crops ("play_object_crop" ...) add rows of play under their own crops.
                "state" (N, S) with `num_state`; "past_action", "past_state" and "past_mask" with `history` (without
                them it does as if it had no memory); optional "jitter" (N, 2). With a flow head optional "noise"
                (N, H, A), and the targets "action", "action_mask" and "chunk_state", see `FlowHead.losses`.

        Returns:
            "action" (N, H, A) normalized under the first of these contexts, and with a reach head "reach" (N, R)
            normalized; "keypoint_logprob" (N, 2, P), log-probabilities of where its first two key points look among
            the P cells of the map. Under the others "crop_action", "crop_reach", "inverse_action", "play_action",
            "play_reach" ... "sentence_context" and "crop_context" (N, C) where a batch has both.
            A flow head gives "action" in evaluation mode only, and the parts of its loss where there are targets: with
            a history, the means with and without it.
        """
        views = self._views(batch, self._images(batch))
        seen, logprob = self._seen(views)
        if "now" in seen and "goal" not in seen:
            seen["goal"] = seen["now"][batch["goal_row"].to(seen["now"].device, non_blocking=True)]
        out: dict[str, Tensor] = {}
        if "goal" in seen:
            pair = self.pair(torch.cat([seen.pop("now"), seen.pop("goal")], dim=-1))
            out["inverse_action" if seen else "action"] = self.pair_out(pair)
        for name, seen_NF in seen.items():
            context_NC = views[name].context_NC
            read_NW = self._read(seen_NF, context_NC, batch if name in ("", "crop_") else _state_of_play(batch))
            if self.config.head == "regression":
                out[f"{name}action"] = self.head(read_NW)
            else:
                assert isinstance(self.head, FlowHead)
                out |= flow_outputs(self.head, read_NW, batch, self.action_scale, acts=not self.training)
            out[f"{name}keypoint_logprob"] = logprob[name]
            if self.config.num_reach:
                out[f"{name}reach"] = self.reach(read_NW)
        if "crop_" in views:
            out |= {"sentence_context": views[""].context_NC, "crop_context": views["crop_"].context_NC}
        return out

    def _images(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Every image of the first camera, its joined map and the others'; all of a camera pass a tower at once."""
        names = [name for name in ("rgb", "goal_rgb", "play_rgb") if name in batch]
        jitter = {"rgb": "jitter", "goal_rgb": "jitter", "play_rgb": "play_jitter"}
        images = torch.cat([_floats(batch[name], batch.get(jitter[name])) for name in names])
        if self.config.num_cameras == 1:
            joined = self.join(self.vision(images))
            others = joined.new_zeros(len(joined), 0)
        else:
            joined, *maps_V = self.cameras.maps(_other_images(batch, names), images, self.vision, self.join)
            others = torch.stack(maps_V, dim=1)
        sizes = [len(batch[name]) for name in names]
        parts = zip(images.split(sizes), joined.split(sizes), others.split(sizes), strict=True)
        return dict(zip(names, parts, strict=True))

    def _views(self, batch: Batch, images: dict[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, View]:
        """The images and contexts of a batch; the keys are prefixes of the outputs."""
        views = {}
        if "tokens" in batch:
            words_ULD = self.language(batch["tokens"])
            row_N = batch["sentence"].to(words_ULD.device, non_blocking=True)
            views[""] = View(*images["rgb"], self.sentence(words_ULD, batch["tokens"] >= 0)[row_N])
        if "object_crop" in batch:
            name = "crop_" if views else ""
            views[name] = View(*images["rgb"], self.crops(batch))
        if "play_object_crop" in batch:
            views["play_"] = View(*images["play_rgb"], self.crops(of_play(batch)))
        if "goal_rgb" in batch or "goal_row" in batch:
            nothing = images["rgb"][1].new_zeros(len(batch["rgb"]), self.config.context_width)
            goal = {"goal": View(*images["goal_rgb"], nothing)} if "goal_rgb" in batch else {}
            views |= {"now": View(*images["rgb"], nothing), **goal}
        return views

    def _seen(self, views: dict[str, View]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(N, F) features of each view, and (N, 2, P) where its first two key points look; all views at once."""
        joined = torch.cat([view.map_NWGG for view in views.values()])
        context_NC = torch.cat([view.context_NC for view in views.values()])
        points_NF, logprob_N2P = self.keypoints(joined, context_NC)
        if self.config.glimpse_px:
            num = self.config.num_keypoints
            first_N22 = torch.stack([points_NF[:, :2], points_NF[:, num : num + 2]], dim=-1)
            images = torch.cat([view.image_N3YX for view in views.values()])
            points_NF = torch.cat([points_NF, self.glimpse(images, first_N22, joined.shape[-1])], dim=-1)
        if self.config.num_cameras > 1:
            others = torch.cat([view.other_NVWGG for view in views.values()]).unbind(1)
            points_NF = torch.cat([points_NF, self.cameras(others, context_NC)], dim=-1)
        sizes = [len(view.context_NC) for view in views.values()]
        seen, logprob = (dict(zip(views, part.split(sizes), strict=True)) for part in (points_NF, logprob_N2P))
        return seen, logprob

    def _read(self, seen_NF: Tensor, context_NC: Tensor, batch: Batch) -> Tensor:
        """(N, W) features for the heads; with a history in training (2 N, W): once with it, then without."""
        parts = [seen_NF, self.context_in(context_NC)]
        if self.config.num_state:
            parts.append(self.state_in(self.state_scale(batch["state"])))
        if not self.config.history:
            return self.readout(torch.cat(parts, dim=-1))
        assert isinstance(self.head, FlowHead)
        memory_NB = seen_NF.new_zeros(len(seen_NF), SIDE_FEATURES)
        if "past_action" in batch:
            past = self.action_scale(batch["past_action"])
            without = memory_NB
            memory_NB = self.history_in(self.head.encode(past, batch["past_state"], batch["past_mask"])).to(
                without.dtype
            )
            if self.training:
                memory_NB, parts = torch.cat([memory_NB, without]), [part.repeat(2, 1) for part in parts]
        return self.readout(torch.cat([*parts, memory_NB], dim=-1))


OF_TOWERS = ("vision", "language", "context_width", "map_width", "num_keypoints", "glimpse_px", "camera_towers")
"""Fields of the small policy that an image-text model does not use."""


def require_used(config: PolicyConfig) -> None:
    """Raise a ConfigError if a chosen value is not used by the backbone or the head."""
    usual = PolicyConfig()
    if config.vlm.pretrained:
        for name in OF_TOWERS:
            if getattr(config, name) != getattr(usual, name):
                raise ConfigError(
                    f"policy.{name} has no effect with --policy.vlm.pretrained, which determines it. Omit it."
                )
    elif config.num_cameras == 1 and config.camera_towers != usual.camera_towers:
        raise ConfigError("policy.camera_towers has no effect with one camera. Omit it, or record with --cameras.")
    elif config.head == "tokens":
        raise ConfigError("Action tokens are words of a VLM: --policy.head tokens needs --policy.vlm.pretrained.")
    for room, needs in (("vlm", "--policy.vlm.pretrained"), ("tokens", "--policy.head tokens")):
        used = config.vlm.pretrained if room == "vlm" else config.head == "tokens"
        chosen, default = getattr(config, room), getattr(usual, room)
        for name, value in vars(chosen).items():
            if not used and value != getattr(default, name):
                raise ConfigError(f"policy.{room}.{name} has no effect without {needs}. Omit it, or add {needs}.")


def plain(config: PolicyConfig) -> dict[str, Any]:
    """Plain values that identify a run. Fields that were added later are left out where they are not used, so that the
    names of older runs stay valid."""
    kept = without_unused(config, LATER)
    return kept | ({"vlm": without_unused(config.vlm, LATER_OF_VLM)} if "vlm" in kept else {})


OF_CAMERAS = ("num_cameras", "camera_towers")
"""Fields that a policy with one camera does not use and does not write into its files."""
LATER = ("vlm", "tokens", *OF_CAMERAS)
LATER_OF_VLM = ("pi0", "head_layers", "pad_tokens")


def acts(config: PolicyConfig) -> bool:
    """Whether a policy acts on one image; inverse dynamics alone needs two."""
    return config.context != ("goal",)


def _mlp(num_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def _state_of_play(batch: Batch) -> Batch:
    """What the read-out is given beside the features of play: it has no memory."""
    return {"state": batch["play_state"]} if "play_state" in batch else {}


def _other_images(batch: Batch, names: list[str]) -> list[Tensor]:
    """(N, 3, Y, X) levels of each camera except the first, with rows in the order of the first camera's `names`."""
    jitter = {"rgb": "extra_jitter", "goal_rgb": "extra_jitter", "play_rgb": "play_extra_jitter"}
    parts: list[list[Tensor]] = []
    for name in names:
        rgb_NVYXC, changes_NV2 = batch[name.replace("rgb", "extra_rgb")], batch.get(jitter[name])
        cameras = range(rgb_NVYXC.shape[1])
        parts.append([_floats(rgb_NVYXC[:, v], None if changes_NV2 is None else changes_NV2[:, v]) for v in cameras])
    return [torch.cat(images) for images in zip(*parts, strict=True)]


def _floats(rgb_NYXC: Tensor, jitter_N2: Tensor | None) -> Tensor:
    """(N, Y, X, 3) uint8 -> (N, 3, Y, X) floats 0 .. 255, a view in channels_last.

    In bfloat16 where products are: it holds 0 .. 255, and the steps of our own towers are powers of two, so nothing is
    rounded.
    """
    kind = rgb_NYXC.device.type
    half = torch.is_autocast_enabled(kind)
    x = rgb_NYXC.permute(0, 3, 1, 2).to(torch.get_autocast_dtype(kind) if half else torch.float32)
    if jitter_N2 is not None:
        x = jittered(x, jitter_N2)
    return x
