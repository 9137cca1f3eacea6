"""Encodes glimpses of object and place: N rows, C x C pixels of the image around each of the first two key points.

Key points give positions and not orientations. A small network reads a window of the image around each of the two, so
what it learns (the object's yaw, whether the gripper is above it) is valid at all positions on the table.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tap_ray.models.vision import GRAY, GRAY_STEP

NUM_SEEN = 48
"""Number of features of a glimpse."""
SHRINKS = 8
"""A window's side is a multiple of this, px, because the network halves it three times."""


def on_image(points_N22: Tensor, grid: int) -> Tensor:
    """Rescale (N, 2, 2) points from the centers of the first and last of `grid` cells to the image: -1 and 1 become the
    image's borders."""
    return points_N22.float() * (grid - 1) / grid


class Glimpse(nn.Module):
    """An image and two points of it -> (N, 2 * NUM_SEEN)."""

    def __init__(self, size_px: int) -> None:
        super().__init__()
        self.size_px = size_px
        sizes, layers = (3, 32, 48, 64), []
        for before, after, stride in zip(sizes, sizes[1:], (2, 2, 1), strict=False):
            kernel = 3 if stride == 1 else 4
            layers += [nn.Conv2d(before, after, kernel, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.cnn = nn.Sequential(*layers)
        self.cnn.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.out = nn.Linear(sizes[-1] * (size_px // SHRINKS) ** 2, NUM_SEEN)

    def forward(self, images_N3YX: Tensor, points_N22: Tensor, grid: int) -> Tensor:
        """(N, 2 * NUM_SEEN) features; where a window crosses the image's edge, the edge is repeated.

        Args:
            images_N3YX: levels 0 .. 255.
            points_N22: (x, y) of each point, from -1, the middle of the first of `grid` cells, to 1, that of the last.
            grid: cells along a side of the map that the points were found in.
        """
        windows = self.windows(images_N3YX, points_N22, grid).flatten(0, 1)
        windows = windows.contiguous(memory_format=torch.channels_last)
        seen = F.max_pool2d(self.cnn((windows - GRAY) / GRAY_STEP), 2).flatten(1)
        return F.relu(self.out(seen)).view(len(images_N3YX), -1)

    def windows(self, images_N3YX: Tensor, points_N22: Tensor, grid: int) -> Tensor:
        """(N, 2, 3, C, C) float32 levels around the two points, interpolated between pixels."""
        size, middle_N22 = self.size_px, on_image(points_N22, grid)
        offset_C = (torch.arange(size, device=middle_N22.device) - (size - 1) / 2) * 2 / images_N3YX.shape[-1]
        x_N2C, y_N2C = (middle_N22[..., axis, None] + offset_C for axis in (0, 1))
        grid_N2CC2 = torch.stack(
            [x_N2C[:, :, None, :].expand(-1, -1, size, -1), y_N2C[..., None].expand(-1, -1, -1, size)], dim=-1
        )
        with torch.autocast(images_N3YX.device.type, enabled=False):  # CPUs have no grid_sample in bfloat16
            seen = F.grid_sample(
                images_N3YX.float(), grid_N2CC2.flatten(1, 2), padding_mode="border", align_corners=False
            )
        return seen.unflatten(2, (2, size)).transpose(1, 2)
