"""Reads the images of all cameras except the first one. N rows, V of these cameras, W x G x G joined maps.

Each camera has key points of its own, conditioned on the same context (FiLM). They are not supervised to lie on the
object, so there are no glimpses around them. Its tower is its own, or the first one's ("shared"). Of the default
policy's 0.72 M parameters 0.32 M are tower and join; a second camera adds 0.46 M with a tower of its own, 0.13 M with a
shared one.
"""

from typing import TYPE_CHECKING, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tap_ray.models.keypoints import Join, KeyPoints
from tap_ray.models.vision import VisionTower

if TYPE_CHECKING:
    from tap_ray.models.policy import PolicyConfig


class OtherCameras(nn.Module):
    """Images of V cameras and a context -> (N, V * 3 K) key points."""

    def __init__(self, config: "PolicyConfig", hf: PretrainedConfig, *, load_weights: bool) -> None:
        """
        Args:
            config: the policy's config, with at least two cameras.
            hf: `transformers` config of the towers.
            load_weights: fetch the weights of pretrained towers.
        """
        super().__init__()
        others = range(config.num_cameras - 1)
        if config.camera_towers == "own":
            size = config.image_size
            towers = [VisionTower(config.vision, hf, image_size=size, load_weights=load_weights) for _ in others]
            self.vision = nn.ModuleList(towers)
            self.join = nn.ModuleList(Join(tower.channels, config.map_width) for tower in towers)
        sizes = {"width": config.map_width, "num": config.num_keypoints, "context": config.context_width}
        self.keypoints = nn.ModuleList(KeyPoints(**sizes) for _ in others)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def maps(self, images_V: Sequence[Tensor], first: Tensor, vision: VisionTower, join: Join) -> list[Tensor]:
        """Joined maps (N, W, G, G) of the first camera's (N, 3, Y, X) images, then (V N, W, G, G) of the others.

        A shared tower gets the images of all cameras in one batch, so that its norms see the same mix in training and
        inference.
        """
        if not hasattr(self, "vision"):
            return list(join(vision(torch.cat([first, *images_V]))).chunk(1 + len(images_V)))
        parts = zip((vision, *self.vision), (join, *self.join), (first, *images_V), strict=True)
        return [own_join(tower(images)) for tower, own_join, images in parts]

    def forward(self, maps_V: Sequence[Tensor], context_NC: Tensor) -> Tensor:
        """(N, V * 3 K)."""
        found = zip(self.keypoints, maps_V, strict=True)
        return torch.cat([keypoints(one, context_NC)[0] for keypoints, one in found], dim=-1)
