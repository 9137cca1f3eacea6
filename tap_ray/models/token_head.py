"""The head "tokens": generates action tokens one after another, constrained so that an action always decodes.

A chunk has H x A numbers and each token writes some of them, so a token that would write more than are left is not
allowed. A byte-level token may end in the middle of a two-byte character: then the next one must continue it.
N batch, V tokens, R numbers left, S states (0 between characters, 1 within one).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tap_ray.models.fast import FastTokenizer

SPLIT = 2
"""States of the byte decoder: between two characters, and before the second byte of one."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Tables of the tokens that may follow, and the states after them."""

    mask_RSV: np.ndarray
    """bool: in a state with R numbers left, the token is valid UTF-8, and the chunk can still be completed."""
    written_SV: np.ndarray
    """int64: number of values that the token completes."""
    state_SV: np.ndarray
    """int64: the state after the token."""


def allowed_tokens(tokenizer: FastTokenizer) -> Allowed:
    """The tables of a tokenizer."""
    steps = [[_read(token, state) for token in tokenizer.bytes] for state in range(SPLIT)]
    fits_SV = np.array([[step is not None for step in row] for row in steps])
    written_SV, state_SV = (np.array([[(step or (0, 0))[at] for step in row] for row in steps]) for at in (0, 1))
    num = tokenizer.num_numbers
    reach_RS = np.zeros((num + 1, SPLIT), bool)
    reach_RS[0, 0] = True
    mask_RSV = np.zeros((num + 1, *fits_SV.shape), bool)
    for left in range(1, num + 1):
        for state in reversed(range(SPLIT)):  # a lead byte alone completes no number: it leads to state 1
            behind_V = left - written_SV[state]
            mask_V = fits_SV[state] & (behind_V >= 0)
            mask_V &= reach_RS[behind_V.clip(0), state_SV[state]]
            mask_RSV[left, state], reach_RS[left, state] = mask_V, mask_V.any()
    if not reach_RS[num, 0]:
        raise AssertionError("no sequence of these tokens decodes to a whole chunk")
    return Allowed(mask_RSV=mask_RSV, written_SV=written_SV, state_SV=state_SV)


def _read(token: bytes, state: int) -> tuple[int, int] | None:
    """(completed characters, state afterwards) of a token read in a state; None if that is not valid UTF-8 below
    U+0800."""
    written = 0
    if not token:
        return None
    for byte in token:
        if state:
            if not 0x80 <= byte < 0xC0:
                return None
            state, written = 0, written + 1
        elif byte < 0x80:
            written += 1
        elif 0xC2 <= byte <= 0xDF:
            state = 1
        else:
            return None
    return written, state


class TokenHead(nn.Module):
    """Hidden states of the backbone -> logits of the next action token. The tokens' embeddings are the backbone's."""

    mask_RSV: Tensor
    written_SV: Tensor
    state_SV: Tensor

    def __init__(self, *, features: int, tokenizer: FastTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.out = nn.Linear(features, tokenizer.num_tokens, bias=False)
        tables = allowed_tokens(tokenizer)
        for name in ("mask_RSV", "written_SV", "state_SV"):
            self.register_buffer(name, torch.from_numpy(getattr(tables, name)), persistent=False)

    def targets(self, action_NHA: Tensor, step_NH: Tensor) -> Tensor:
        """(N, T) int64 tokens of normalized chunks, -1 behind each row's last, on the CPU.

        A chunk that ends before its last step (`step_NH` False from there on) is continued with its last action, as
        openpi pads them: the transform needs every step.
        """
        last_N = step_NH.long().sum(1).clamp_min(1) - 1
        step_NH = torch.minimum(torch.arange(action_NHA.shape[1], device=last_N.device), last_N[:, None])
        filled = action_NHA.float().gather(1, step_NH[..., None].expand_as(action_NHA))
        rows = self.tokenizer.encode(filled.cpu().numpy())
        longest = max(map(len, rows))
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])

    def loss(self, hidden_NTD: Tensor, target_NT: Tensor) -> Tensor:
        """Mean cross-entropy a token, nats, among the action tokens."""
        return F.cross_entropy(self.out(hidden_NTD).float().flatten(0, 1), target_NT.flatten(), ignore_index=-1)

    def choose(self, hidden_ND: Tensor, left_N: Tensor, state_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest allowed token of each row, the numbers left behind it and the state; rows that are done (0
        left) stay as they are."""
        logits_NV = self.out(hidden_ND).float()
        mask_NV = self.mask_RSV[left_N, state_N]
        token_N = logits_NV.masked_fill(~mask_NV, float("-inf")).argmax(-1)
        busy_N = left_N > 0
        written_N = torch.where(busy_N, self.written_SV[state_N, token_N], 0)
        behind_N = torch.where(busy_N, self.state_SV[state_N, token_N], state_N)
        return torch.where(busy_N, token_N, -1), left_N - written_N, behind_N

    def decode(self, token_NT: Tensor) -> Tensor:
        """(N, H, A) float32 normalized actions; -1 stands for no token."""
        rows = [[token for token in row if token >= 0] for row in token_NT.tolist()]
        return torch.from_numpy(self.tokenizer.decode(rows)).to(token_NT.device)
