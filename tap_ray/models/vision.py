"""Vision towers: `transformers` models that turn images into feature maps. Shapes: N images, C channels, G x G cells.

A CPU trains a small one made from a config here; a GPU may start from a checkpoint (a local path or a hub id). Batch
normalization matters: with LayerNorm over channels instead, the same ResNet learned nothing in 400 steps, and with it
R^2 was 0.96 after 200. Most of every image never changes, and only statistics over the batch remove that part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, ResNetConfig, ViTConfig
from transformers.image_processing_base import ImageProcessingMixin

from tap_ray.errors import CheckpointError, ConfigError

GRAY, GRAY_STEP = 128, 64
"""Our own towers read (level - 128) / 64, which is exact in bfloat16."""
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Levels (0 .. 255), for checkpoints that do not say what they were trained with."""


def jittered(levels: Tensor, jitter_N2: Tensor) -> Tensor:
    """Change the contrast and brightness of images (N, ., ., .) of levels 0 .. 255; 0 leaves them unchanged."""
    contrast, brightness = jitter_N2.to(levels.dtype)[:, :, None, None, None].unbind(1)
    return (levels - GRAY) * (1 + contrast) + (GRAY + 255 * brightness)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Settings of the vision tower."""

    kind: Literal["resnet", "vit", "pretrained"] = "resnet"
    """"resnet": overlapping stem and residual blocks; "vit": patches and attention; "pretrained": a checkpoint."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the ResNet's stages; each but the first halves the resolution (which the stem quartered)."""
    stem_width: int = 32
    """Channels of the ResNet's stem."""
    patch_px: int = 16
    """Side of a ViT's patch, px."""
    vit_width: int = 192
    """Channels of the ViT."""
    vit_layers: int = 4
    """Layers of the ViT."""
    pretrained: str = ""
    """Local folder or hub id for kind "pretrained"."""
    frozen: bool = False
    """Whether its weights are frozen (in the paper they are, in Stage 1)."""


def tower_config(config: VisionConfig, *, image_size: int) -> PretrainedConfig:
    """The `transformers` config of a tower.

    Raises:
        CheckpointError: there is no model at `config.pretrained`.
        ConfigError: the sizes do not fit each other.
    """
    match config.kind:
        case "resnet":
            return ResNetConfig(
                embedding_size=config.stem_width,
                hidden_sizes=list(config.widths),
                depths=[1] * len(config.widths),
                layer_type="basic",
                downsample_in_first_stage=False,
            )
        case "vit":
            if image_size % config.patch_px:
                raise ConfigError(
                    f"The image size must be a multiple of patch_px; got {image_size} and {config.patch_px}."
                )
            return ViTConfig(
                image_size=image_size,
                patch_size=config.patch_px,
                hidden_size=config.vit_width,
                num_hidden_layers=config.vit_layers,
                num_attention_heads=max(1, config.vit_width // 64),
                intermediate_size=config.vit_width * 4,
                hidden_act="relu",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        case "pretrained":
            return _from_hub(AutoConfig, config.pretrained)


class VisionTower(nn.Module):
    """Images -> feature maps, finest first: a convolutional tower's last two stages, a transformer's patch tokens."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, hf: PretrainedConfig, *, image_size: int, load_weights: bool) -> None:
        """
        Args:
            config: which tower.
            hf: its `transformers` config, from `tower_config` or a saved run.
            image_size: side of the input images, px.
            load_weights: fetch `config.pretrained`'s weights; False when a checkpoint follows anyway.

        Raises:
            CheckpointError: the checkpoint cannot be loaded, or is not a vision model that gives maps or patch tokens.
        """
        super().__init__()
        pretrained = config.kind == "pretrained"
        if pretrained and load_weights:
            tower = _from_hub(AutoModel, config.pretrained)
        else:
            tower = AutoModel.from_config(hf, attn_implementation=None if pretrained else "eager")
        tower = getattr(tower, "vision_model", tower)
        for unused in ("pooler", "head"):
            if hasattr(tower, unused):
                setattr(tower, unused, nn.Identity())
        self.tower = tower
        self.frozen = config.frozen
        if self.frozen:
            self.tower.requires_grad_(False)
        self.own_size = getattr(tower.config, "image_size", None) if pretrained else None
        mean, std = [float(GRAY)], [float(GRAY_STEP)]
        if pretrained:
            mean, std = _levels(config.pretrained) if load_weights else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=pretrained)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=pretrained)
        try:
            self.tower.to(memory_format=torch.channels_last)
            maps = self.eval()(torch.zeros(1, 3, image_size, image_size))
        except Exception as error:  # noqa: BLE001  whatever another kind of model makes of an image
            raise CheckpointError(
                f"{config.pretrained or config.kind!r} ({hf.model_type}) does not turn one image into feature maps "
                f"or patch tokens: {error}. Give a vision tower, e.g. ViT, DINOv2, SigLIP, CLIP or ResNet."
            ) from None
        self.channels: tuple[int, ...] = tuple(one.shape[1] for one in maps)
        self.grid: int = maps[0].shape[-1]
        freeze_unused(self.tower, torch.stack([one.float().sum() for one in maps]))
        self.train()

    def train(self, mode: bool = True) -> "VisionTower":
        """A frozen tower stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images_NCYX: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, Y, X) levels 0 .. 255 -> one or two maps (N, C, G, G), the finest first."""
        x = (images_NCYX - self.mean.to(images_NCYX.dtype)) / self.std.to(images_NCYX.dtype)
        if self.own_size is not None and x.shape[-1] != self.own_size:
            x = F.interpolate(x.float(), size=self.own_size, mode="bilinear", antialias=True)  # bf16: not on a CPU
        out = self.tower(pixel_values=x, output_hidden_states=True)
        last = out.last_hidden_state
        if last.ndim == 4:
            return tuple(out.hidden_states[-2:])
        side = x.shape[-1] // self.tower.config.patch_size
        return (last[:, -side * side :].mT.unflatten(-1, (side, side)),)  # class and register tokens come first


def freeze_unused(model: nn.Module, out: Tensor) -> None:
    """Freeze the parameters that `out` does not depend on (a mask token, the norm before a pooler): they never get a
    gradient, which several workers would wait for and a checkpoint would lack."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return
    gradients = torch.autograd.grad(out.float().sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _levels(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (levels 0 .. 255) that a checkpoint was trained with."""
    try:
        about, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        about = {}
    mean, std = about.get("image_mean"), about.get("image_std")
    if mean is None or std is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(255 * part for part in mean), tuple(255 * part for part in std)


def _from_hub(cls: type, source: str):
    if not source:
        raise ConfigError(
            'The vision tower "pretrained" needs a local folder or a hub id in --policy.vision.pretrained.'
        )
    try:
        safe = {"use_safetensors": True} if cls is AutoModel else {}
        return cls.from_pretrained(source, trust_remote_code=False, **safe)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        where = "folder" if Path(source).is_dir() else "path or hub id"
        raise CheckpointError(f"Cannot load the {where} {source!r} as a vision model: {error}") from None
