"""From the read-out to action chunks: N batch, F features, H steps, A action slots."""

import torch
from torch import Tensor, nn


class RegressionHead(nn.Module):
    """Two-layer MLP to a whole chunk of normalised actions (METHOD.md A, text variant).

    The gripper is a slot like any other (absolute, +1 open, -1 closed, not rescaled): trained by the same squared
    error as in the paper; at deployment its sign decides.
    """

    def __init__(self, *, features: int, width: int, chunk: int, num_actions: int) -> None:
        super().__init__()
        self.chunk, self.num_actions = chunk, num_actions
        self.hidden = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.out = nn.Linear(width, chunk * num_actions)

    def forward(self, read_NF: Tensor) -> Tensor:
        """(N, H, A) normalised actions."""
        return self.out(self.hidden(read_NF)).unflatten(-1, (self.chunk, self.num_actions))


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
