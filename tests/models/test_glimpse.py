"""Where the windows of a glimpse lie, and that a point which moves with the image sees the same."""

import pytest
import torch

from tap_ray.errors import ConfigError
from tap_ray.models.glimpse import NUM_SEEN, Glimpse
from tap_ray.models.policy import PolicyConfig


def columns(side: int = 16) -> torch.Tensor:
    """(1, 3, Y, X) levels: each pixel is 10 times its column."""
    return (10.0 * torch.arange(side)).expand(1, 3, side, side)


def test_windows_by_hand() -> None:
    # 16 px in 4 cells of 4 px: the middle of the first cell lies between pixels 1 and 2, of the last between 13 and 14.
    points = torch.tensor([[[-1.0, -1.0], [1.0, 0.0]]])
    windows = Glimpse(8).windows(columns(), points, 4)
    assert windows.shape == (1, 2, 3, 8, 8)
    # 8 px around 1.5: columns -2 .. 5, those outside repeat the edge.
    assert windows[0, 0, 0, 3].tolist() == pytest.approx([0, 0, 0, 10, 20, 30, 40, 50], abs=1e-3)
    assert windows[0, 1, 2, 0].tolist() == pytest.approx([100, 110, 120, 130, 140, 150, 150, 150], abs=1e-3)
    rows = Glimpse(8).windows(columns().mT, points, 4)
    assert rows[0, 1, 0, :, 0].tolist() == pytest.approx([40, 50, 60, 70, 80, 90, 100, 110], abs=1e-3)  # around 7.5


def test_what_moves_with_its_point_looks_the_same() -> None:
    torch.manual_seed(0)
    glimpse = Glimpse(8).eval()
    image = torch.zeros(1, 3, 32, 32)
    image[..., 10:16, 9:13] = 255.0 * torch.rand(3, 6, 4)
    moved = image.roll((8, 4), dims=(2, 3))  # down and to the right by two cells and by one, of 8 cells
    point, step = torch.tensor([-3 / 7, -1 / 7]), 2 / 7
    where = torch.stack([point, torch.tensor([0.0, 0.0])])[None]
    there = torch.stack([point + torch.tensor([step, 2 * step]), torch.tensor([0.0, 0.0])])[None]
    one, other = (glimpse(image, at, 8)[:, :NUM_SEEN] for image, at in ((image, where), (moved, there)))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (one - glimpse(moved, where, 8)[:, :NUM_SEEN]).abs().max() > 1e-3


def test_the_point_learns_from_what_is_seen() -> None:
    points = torch.zeros(1, 2, 2, requires_grad=True)
    Glimpse(8).windows(columns(), points, 4).sum().backward()
    assert points.grad is not None
    assert (points.grad[..., 0] > 0).all()  # to the right it gets brighter
    assert points.grad[..., 1].abs().max() == 0


def test_a_size_that_cannot_be_halved() -> None:
    with pytest.raises(ConfigError, match=r"policy\.glimpse_px must be a multiple of 8 px, or 0; got 20"):
        PolicyConfig(glimpse_px=20)
