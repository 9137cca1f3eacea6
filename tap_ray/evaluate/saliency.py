"""Where does a policy look? Grad-CAM on the last spatial map of its vision towers. T frames, G x G cells, C channels.

    s = 1/2 |a|^2            a: motion slots of the first predicted action, normalised
    w_c = mean_p ds/dA_pc    A_pc: channel c of the tower's last map in cell p
    map_p = |sum_c w_c A_pc|                             Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391

Grad-CAM differentiates the score of a class; an action has none. The gradient of s is that of the action along itself,
and 0 is the mean action of the training data: s says what makes *this* motion differ from the average one. The gripper
is left out: it is absolute and not normalised.

The source keeps what is above 0, since what is below speaks for other classes. A regression has no others: what holds a
motion back is read as much as what drives it. Of policies taught to go where a square lies, the part above 0 leaves the
square out altogether, the absolute value finds it (tests/evaluate/test_saliency.py). Sign "for" is the source's.

A transformer tower's cells are the patch tokens of its last layer, and the formula stays. It does not suit classifiers
that read a class token alone (nothing flows back to the last patches), for which Chefer et al. 2021 (arXiv 2103.15679)
weigh the attention of every layer; here the trunk reads every patch token, and no tower must show its attention, which
the fused kernels of pretrained ones cannot.

Its limits: the mean over cells hides a channel that speaks for the motion in one cell and against it in another, and
even fresh weights like what has contrast, so a trained network's map says something only against theirs.
"""

from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Any, Literal, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_ray.errors import ConfigError
from tap_ray.evaluate.features import inputs
from tap_ray.models.build import Trained
from tap_ray.models.vision import VisionTower

Sign = Literal["both", "for"]
BATCH = 64
"""Frames at a time."""
TOWERS = {"image": "vision", "goal": "goal"}
"""What is looked at -> the tower of `TapPolicy` that does."""
PADDED = ("resnet", "regnet")
"""Towers of odd kernels that are padded by half of them: cell i looks around pixel i * stride. Others cut the image
into patches, and a cell looks around its patch's middle. With 6 cells on 96 px the difference is 7.5 px."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Maps over the frames of one episode."""

    map_TYX: np.ndarray
    """float32, at least 0; each frame adds up to 1, or is 0 everywhere where nothing matters."""
    enlarge_YG: np.ndarray
    """float32 (Y, G): a map's rows and columns from the cells', linear between the cells' middles."""


def saliency(
    trained: Trained,
    rgb: np.ndarray,
    goal_rgb: np.ndarray,
    *,
    state: np.ndarray,
    sentence: Sequence[str],
    sign: Sign = "both",
) -> dict[str, Looks]:
    """Where the policy looks in each frame.

    A flow head starts from zero noise, its mean, so that maps are the same every time; a policy with a history looks
    without it.

    Args:
        trained: of either stage.
        rgb: (T, Y, X, 3) uint8.
        goal_rgb: likewise, the goal image of each frame; only Stage 1 looks at it.
        state: (T, S) float32.
        sentence: (T) instructions; only Stage 2 reads them.
        sign: "both", or "for": only what speaks for the motion; see the top of this file.

    Returns:
        "image" -> maps over `rgb`; in Stage 1 also "goal" -> maps over `goal_rgb`, from the goal stem.

    Raises:
        ConfigError: images of another size than the policy's.
    """
    policy, size = trained.policy.eval(), trained.policy.config.image_size
    if rgb.shape[1:3] != (size, size):
        raise ConfigError(f"This policy was trained on {size} x {size} images, these are {rgb.shape[1:3]}.")
    towers = {view: getattr(policy, name) for view, name in TOWERS.items() if hasattr(policy, name)}
    moves = torch.tensor([not slot.name.endswith("gripper") for slot in trained.spec.action])
    cells: dict[str, list[Tensor]] = {view: [] for view in towers}
    for begin in range(0, len(rgb), BATCH):
        part = slice(begin, begin + BATCH)
        batch = inputs(trained, rgb[part], goal_rgb[part], state=state[part], sentence=sentence[part])
        if policy.config.head == "flow":
            batch["noise"] = torch.zeros(len(batch["rgb"]), policy.config.chunk, policy.config.num_actions)
        for view, found in evidence(policy, towers, batch, moves, sign=sign).items():
            cells[view].append(found)
    looks = {}
    for view, tower in towers.items():
        grid = torch.cat(cells[view]).numpy()
        enlarge_YG = enlarging(cell_middles_px(tower, size, grid.shape[1]), size)
        looks[view] = Looks(map_TYX=normalised(enlarge_YG @ grid @ enlarge_YG.T), enlarge_YG=enlarge_YG)
    return looks


def evidence(
    policy: nn.Module, towers: dict[str, nn.Module], batch: dict[str, Tensor], moves: Tensor, *, sign: Sign
) -> dict[str, Tensor]:
    """(N, G, G) float32 map of each tower, not normalised.

    Args:
        policy: `TapPolicy`, or whatever returns {"action": (N, H, A)}.
        towers: parts of it that return (N, P, C) tokens, row by row from the top left.
        batch: what it is given.
        moves: (A,) bool, the motion slots.
        sign: "both", or "for": only what speaks for the motion; see the top of this file.
    """
    tokens: dict[str, Tensor] = {}

    def cut(view: str, _module: nn.Module, _inputs: Any, out: Any) -> Tensor:
        # What lies below is not differentiated, and a frozen tower's tokens have a gradient all the same.
        tokens[view] = out.detach().requires_grad_()
        return tokens[view]

    hooks = [tower.register_forward_hook(partial(cut, view)) for view, tower in towers.items()]
    try:
        with torch.enable_grad():
            action_NA = policy(batch)["action"][:, 0].float()
            score = 0.5 * (action_NA[:, moves] ** 2).sum()  # rows do not know each other: each has its own gradient
            gradients = torch.autograd.grad(score, list(tokens.values()))
    finally:
        for hook in hooks:
            hook.remove()
    maps = {}
    for (view, token_NPC), slope_NPC in zip(tokens.items(), gradients, strict=True):
        map_NP = (slope_NPC.mean(1, keepdim=True) * token_NPC.detach()).sum(-1).float()
        map_NP = map_NP.abs() if sign == "both" else map_NP.relu()
        side = round(map_NP.shape[1] ** 0.5)
        maps[view] = map_NP.unflatten(1, (side, side))
    return maps


def cell_middles_px(tower: VisionTower, size: int, grid: int) -> np.ndarray:
    """(G,) which pixel each cell of a row looks around, px."""
    if tower.tower.config.model_type in PADDED:
        stride = 2 ** ceil(log2(size / grid))  # each halving rounds up
        return np.arange(grid) * float(stride)
    return (np.arange(grid) + 0.5) * size / grid - 0.5


def enlarging(middles_px: np.ndarray, size: int) -> np.ndarray:
    """(Y, G) float32 that makes pixels from cells: linear between the cells' middles, constant beyond."""
    rows = [np.interp(np.arange(size), middles_px, one) for one in np.eye(len(middles_px))]
    return np.stack(rows, axis=1).astype(np.float32)


def normalised(map_TYX: np.ndarray) -> np.ndarray:
    """Each frame divided by its sum; a frame of zeros stays as it is."""
    total = map_TYX.sum((1, 2), keepdims=True)
    return (map_TYX / np.where(total > 0, total, 1)).astype(np.float32)
