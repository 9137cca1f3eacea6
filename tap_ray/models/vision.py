"""Vision towers: `transformers` models that turn images into tokens. Shapes: N images, P tokens, C channels.

A CPU trains a small one made from a config here; a GPU may start from a checkpoint (a local path or a hub id).
Batch normalisation matters: with LayerNorm over channels in its place the same ResNet learnt nothing in 400 steps where
it reached R^2 0.96 in 200, because most of every image stands still and only statistics over the batch take that out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, ResNetConfig, ViTConfig

from tap_ray.errors import CheckpointError, ConfigError

GREY, GREY_STEP = 128, 64
"""Own towers read (level - 128) / 64: exact in bfloat16."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Which tower."""

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
    """Whether its weights stay as they are (the paper: frozen in Stage 1)."""


def tower_config(config: VisionConfig, *, image_size: int, channels: int = 3) -> PretrainedConfig:
    """The `transformers` config of a tower.

    Raises:
        CheckpointError: nothing at `config.pretrained`.
        ConfigError: sizes that do not fit.
    """
    match config.kind:
        case "resnet":
            return ResNetConfig(
                num_channels=channels,
                embedding_size=config.stem_width,
                hidden_sizes=list(config.widths),
                depths=[1] * len(config.widths),
                layer_type="basic",
                downsample_in_first_stage=False,
            )
        case "vit":
            if image_size % config.patch_px:
                raise ConfigError(f"patch_px {config.patch_px} does not divide the image size {image_size}.")
            return ViTConfig(
                num_channels=channels,
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
    """Images -> (N, P, C) tokens, row by row from the top left."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: VisionConfig, hf: PretrainedConfig, *, image_size: int, load_weights: bool, raw: bool = True
    ) -> None:
        """
        Args:
            config: which tower.
            hf: its `transformers` config, from `tower_config` or a saved run.
            image_size: side of the images that will come, px.
            load_weights: fetch `config.pretrained`'s weights; False when a checkpoint follows anyway.
            raw: images come as levels 0 .. 255; False: as the caller scaled them.
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
        self.tower = tower.to(memory_format=torch.channels_last)
        self.frozen = config.frozen
        if self.frozen:
            self.tower.requires_grad_(False)
        self.own_size = getattr(tower.config, "image_size", None) if pretrained else None
        mean, std = torch.tensor([float(GREY)]), torch.tensor([float(GREY_STEP)])
        if pretrained:
            mean, std = 255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD)
        self.raw = raw
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)
        with torch.no_grad():
            probe = torch.zeros(1, getattr(hf, "num_channels", 3), image_size, image_size)
            _, self.num_tokens, self.channels = self.eval()(probe).shape
        self.train()

    def train(self, mode: bool = True) -> "VisionTower":
        """A frozen tower stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images_NCYX: Tensor) -> Tensor:
        """(N, C, Y, X) floats -> (N, P, C) tokens."""
        x = images_NCYX
        if self.raw:
            x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        if self.own_size is not None and x.shape[-1] != self.own_size:
            x = F.interpolate(x, size=self.own_size, mode="bilinear", antialias=True)
        out = self.tower(pixel_values=x).last_hidden_state
        if out.ndim == 4:
            return out.flatten(2).transpose(1, 2)
        grid = int((out.shape[1]) ** 0.5) ** 2
        return out[:, out.shape[1] - grid :]


def _from_hub(cls: type, source: str):
    if not source:
        raise ConfigError('kind "pretrained" needs a local folder or a hub id in --policy.vision.pretrained.')
    try:
        return cls.from_pretrained(source)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        where = "folder" if Path(source).is_dir() else "path or hub id"
        raise CheckpointError(f"Cannot load the {where} {source!r} as a vision model: {error}") from None
