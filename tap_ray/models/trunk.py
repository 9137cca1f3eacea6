"""Implements the transformer of the policy. Shapes: N batch, S tokens, D width, K heads.

On a CPU attention is an explicit product and softmax, with few heads and ReLU: a training step took 277 ms with it, and
759 ms with torch's fused attention, which is what GPUs use.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Self-attention with a mask of tokens that are not attended to."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_NSD: Tensor, key_padding_mask_NS: Tensor | None) -> Tensor:
        """`key_padding_mask_NS` is True at padding."""
        num, length, width = x_NSD.shape
        qkv = self.qkv(x_NSD).view(num, length, 3, self.num_heads, width // self.num_heads)
        query_NKSd, key_NKSd, value_NKSd = qkv.permute(2, 0, 3, 1, 4)
        attend = fused_attention if x_NSD.is_cuda else explicit_attention
        mixed_NKSd = attend(query_NKSd, key_NKSd, value_NKSd, key_padding_mask_NS)
        return self.out(mixed_NKSd.transpose(1, 2).reshape(num, length, width))


def explicit_attention(
    query_NKSd: Tensor, key_NKSd: Tensor, value_NKSd: Tensor, key_padding_mask_NS: Tensor | None
) -> Tensor:
    """(N, K, S, d) each; the mask is True at padding. A row of nothing but padding takes the mean of all its values."""
    scores_NKSS = query_NKSd @ key_NKSd.transpose(-1, -2) * query_NKSd.shape[-1] ** -0.5
    if key_padding_mask_NS is not None:
        scores_NKSS = scores_NKSS.masked_fill(key_padding_mask_NS[:, None, None, :], torch.finfo(scores_NKSS.dtype).min)
    return scores_NKSS.softmax(-1).to(value_NKSd.dtype) @ value_NKSd


def fused_attention(
    query_NKSd: Tensor, key_NKSd: Tensor, value_NKSd: Tensor, key_padding_mask_NS: Tensor | None
) -> Tensor:
    """The same as `explicit_attention`, by torch's kernels, which give 0 or NaN for a row that sees no key: it sees all
    keys, with a query of zeros."""
    seen = None
    if key_padding_mask_NS is not None:
        empty_N111 = key_padding_mask_NS.all(-1)[:, None, None, None]
        seen = ~key_padding_mask_NS[:, None, None, :] | empty_N111
        query_NKSd = query_NKSd.masked_fill(empty_N111, 0.0)
    return scaled_dot_product_attention(query_NKSd, key_NKSd, value_NKSd, attn_mask=seen)


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x_NSD: Tensor, key_padding_mask_NS: Tensor | None = None) -> Tensor:
        """Same shape."""
        x_NSD = x_NSD + self.attention(self.norm1(x_NSD), key_padding_mask_NS)
        return x_NSD + self.mlp(self.norm2(x_NSD))


class Trunk(nn.Module):
    """A stack of blocks and a last norm."""

    def __init__(self, *, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NSD: Tensor, key_padding_mask_NS: Tensor | None = None) -> Tensor:
        """Same shape."""
        for block in self.blocks:
            x_NSD = block(x_NSD, key_padding_mask_NS)
        return self.norm(x_NSD)
