"""Computes Grad-CAM on the feature map from which a policy finds its key points. T frames, G x G cells, C channels.

    s = 1/2 |a|^2            a: motion slots of the first predicted action, normalized
    w_c = mean_p ds/dA_pc    A_pc: channel c of the joined map (`models.keypoints.Join`) in cell p
    map_p = |sum_c w_c A_pc|                             Grad-CAM, Selvaraju et al. 2017, arXiv 1610.02391

Grad-CAM differentiates the score of a class; an action has none. The gradient of s is that of the action along itself,
and 0 is the mean action of the training data: s measures how *this* motion differs from the average one. The gripper
is omitted, because it is absolute and not normalized.

The source keeps values above 0, because those below 0 support other classes. A regression has no other classes, and
what reduces a motion matters as much as what increases it, so the absolute value is used. With sign "positive" the
map is the source's. For a policy trained to go to a square, both maps show the square; for one trained to react to its
color, only the absolute value does for every seed: 1.9 to 4.8 times chance on three seeds, against 0.9 to 6.8.

The cells of a transformer tower are the patch tokens of its last layer. The formula is the same, because key points
read all of them; a classifier that reads only a class token would need Chefer et al. 2021 (arXiv 2103.15679).

The input of a glimpse does not pass through that map. The glimpse's own last map is differentiated in the same way and
added where its window lies in the image; both maps are per pixel, so that a small cell has the weight of its area.

Limits: the mean over cells hides a channel that supports the motion in one cell and opposes it in another. Even random
weights react to contrast, so the map of a trained network is meaningful only in comparison with theirs.
"""

import contextlib
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_ray.errors import ConfigError
from tap_ray.inspect.features import inputs
from tap_ray.inspect.settings import Sign
from tap_ray.models.batch import Batch
from tap_ray.models.build import PolicyBundle
from tap_ray.models.glimpse import on_image
from tap_ray.models.policy import TapPolicy, acts
from tap_ray.models.vision import VisionTower

BATCH = 64
"""Number of frames per batch."""
VIEWS = ("image", "goal")
"""The images that maps are computed for: the current one, and the second one of inverse dynamics."""
PADDED = ("resnet", "regnet")
"""Towers of odd kernels that are padded by half of them: cell i looks around pixel i * stride. Others cut the image
into patches, and a cell looks around its patch's middle. With 6 cells on 96 px the difference is 7.5 px."""


@dataclass(frozen=True, kw_only=True)
class SaliencyMaps:
    """Maps over the frames of one episode."""

    map_TYX: np.ndarray
    """float32, at least 0; each frame adds up to 1, or is 0 everywhere where nothing matters."""
    upsample_YG: np.ndarray
    """float32 (Y, G): a map's rows and columns from the cells', linear between the cells' middles. Glimpses apart."""
    view: str = VIEWS[0]
    camera: int = 0


def saliency(
    bundle: PolicyBundle,
    rgb: np.ndarray,
    goal_rgb: np.ndarray,
    *,
    state: np.ndarray,
    sentence: Sequence[str],
    crops: Mapping[str, np.ndarray] | None = None,
    sign: Sign = "abs",
) -> dict[str, SaliencyMaps]:
    """Compute where the policy looks in each frame.

    A flow head starts from zero noise, its mean, so that maps are the same every time; a policy with a history gets
    none.

    Args:
        bundle: policy of either stage.
        rgb: (T, Y, X, 3) uint8; with V > 1 cameras (T, V, Y, X, 3).
        goal_rgb: likewise, the goal image of each frame; only inverse dynamics reads it.
        state: (T, S) float32.
        sentence: (T) instructions; only Stage 2 reads them.
        crops: as for `features.inputs`; only a policy that was trained on them reads them.
        sign: "abs", or "positive" for evidence in favor of the motion only; see the top of this file.

    Returns:
        "image" -> maps over `rgb`; for inverse dynamics also "goal" -> maps over `goal_rgb`; of further cameras
        "wrist image" ... A frame's maps of all cameras are each divided by their own sum.

    Raises:
        ConfigError: the images have another size than the policy's.
    """
    policy, size = bundle.network.eval(), bundle.network.config.image_size
    if not isinstance(policy, TapPolicy):
        raise ConfigError("Saliency maps need the key points of the small policy, which a VLM policy does not have.")
    if rgb.shape[-3:-1] != (size, size):
        raise ConfigError(f"This policy was trained on {size} x {size} images; got {rgb.shape[-3:-1]}.")
    views = [(at, view) for at in range(policy.config.num_cameras) for view in VIEWS[: 1 if acts(policy.config) else 2]]
    moves = torch.tensor([at not in bundle.spec.grippers for at in range(len(bundle.spec.action))])
    cells: dict[tuple[int, str], list[Tensor]] = {view: [] for view in views}
    close: dict[tuple[int, str], list[Tensor]] = {view: [] for view in views}
    for begin in range(0, len(rgb), BATCH):
        part = slice(begin, begin + BATCH)
        own_crops = None if crops is None else {name: value[part] for name, value in crops.items()}
        batch = inputs(bundle, rgb[part], goal_rgb[part], state=state[part], sentence=sentence[part], crops=own_crops)
        if policy.config.head == "flow":
            batch["noise"] = torch.zeros(len(batch["rgb"]), policy.config.chunk, policy.config.num_actions)
        with _windows(policy) as places:
            found = grad_cam(policy, _parts(policy), batch, moves, sign=sign)
        if policy.config.glimpse_px:
            laid_MYX = laid(found.pop().unflatten(0, (-1, 2)), places[0], policy.config.glimpse_px, size)
            for view, laid_NYX in zip(views, laid_MYX.split(len(batch["rgb"])), strict=False):
                close[view].append(laid_NYX)
        for view, found_NGG in zip(views, torch.cat(found).split(len(batch["rgb"])), strict=True):
            cells[view].append(found_NGG)
    maps = {}
    for at, name in views:
        view = at, name
        grid = torch.cat(cells[view]).numpy()
        upsample_YG = upsampling_matrix(cell_middles_px(policy.vision, size, grid.shape[1]), size)
        map_TYX = upsample_YG @ grid @ upsample_YG.T * (grid.shape[1] / size) ** 2
        if close[view]:
            map_TYX = map_TYX + torch.cat(close[view]).numpy()
        title = f"{bundle.spec.cameras[at]} {name}" if at else name
        maps[title] = SaliencyMaps(map_TYX=normalized(map_TYX), upsample_YG=upsample_YG, view=name, camera=at)
    return maps


def _parts(policy: TapPolicy) -> list[nn.Module]:
    """The modules that return the maps: of the cameras, then of the glimpses. With a shared tower one module returns
    the maps of all cameras, one after the other."""
    others = policy.cameras.join if policy.config.num_cameras > 1 and policy.config.camera_towers == "own" else ()
    return [policy.join, *others, *([policy.glimpse.cnn] if policy.config.glimpse_px else ())]


@contextlib.contextmanager
def _windows(policy: TapPolicy) -> Iterator[list[Tensor]]:
    """While the body runs, collect the centers (M, 2, 2) of a policy's glimpses, x and y in -1 .. 1 on the image."""
    places: list[Tensor] = []
    if not policy.config.glimpse_px:
        yield places
        return
    hook = policy.glimpse.register_forward_pre_hook(lambda _, given: places.append(on_image(given[1], given[2])))
    try:
        yield places
    finally:
        hook.remove()


def laid(map_M2GG: Tensor, middle_M22: Tensor, window_px: int, size: int) -> Tensor:
    """(M, Y, X) per-pixel maps with the windows placed where they lie on the image; parts beyond its edge are dropped.

    Args:
        map_M2GG: per-cell maps of the two windows of each image.
        middle_M22: x and y of their centers, -1 .. 1 between the image's borders.
        window_px: side of a window.
        size: side of the image, px.
    """
    cell_px = window_px // map_M2GG.shape[-1]
    pixel_M2CC = map_M2GG.repeat_interleave(cell_px, 2).repeat_interleave(cell_px, 3) / cell_px**2
    first_M22 = ((middle_M22.detach() + 1) / 2 * size - window_px / 2).round().long() + window_px
    canvas_MYX = map_M2GG.new_zeros(len(map_M2GG), size + 2 * window_px, size + 2 * window_px)
    for row, (windows, firsts) in enumerate(zip(pixel_M2CC, first_M22.tolist(), strict=True)):
        for window, (x, y) in zip(windows, firsts, strict=True):
            canvas_MYX[row, y : y + window_px, x : x + window_px] += window
    return canvas_MYX[:, window_px:-window_px, window_px:-window_px]


def grad_cam(policy: nn.Module, parts: Sequence[nn.Module], batch: Batch, moves: Tensor, *, sign: Sign) -> list[Tensor]:
    """For each part the (M, G, G) float32 maps, not normalized, of the images that pass through it.

    Args:
        policy: `TapPolicy`, or whatever returns {"action": (N, H, A)}.
        parts: modules of the policy, each of which returns (M, C, G, G).
        batch: the policy's input.
        moves: (A,) bool, the motion slots.
        sign: "abs", or "positive" for evidence in favor of the motion only; see the top of this file.
    """
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        # Layers below are not differentiated, and the maps of a frozen tower have a gradient too.
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    hooks = [part.register_forward_hook(cut) for part in parts]
    try:
        with torch.enable_grad():
            action_NA = policy(batch)["action"][:, 0].float()
            score = 0.5 * (action_NA[:, moves] ** 2).sum()  # rows are independent: each has its own gradient
            slopes = torch.autograd.grad(score, seen)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [
        (s.mean((2, 3), keepdim=True) * activation.detach()).sum(1).float()
        for s, activation in zip(slopes, seen, strict=True)
    ]
    return [one.abs() if sign == "abs" else one.relu() for one in maps]


def cell_middles_px(tower: VisionTower, size: int, grid: int) -> np.ndarray:
    """(G,) center pixel of each cell of a row, px."""
    if tower.tower.config.model_type in PADDED:
        stride = 2 ** ceil(log2(size / grid))  # each halving rounds up
        return np.arange(grid) * float(stride)
    return (np.arange(grid) + 0.5) * size / grid - 0.5


def upsampling_matrix(middles_px: np.ndarray, size: int) -> np.ndarray:
    """(Y, G) float32 matrix that interpolates pixels from cells: linear between the cells' centers, constant beyond."""
    rows = [np.interp(np.arange(size), middles_px, one) for one in np.eye(len(middles_px))]
    return np.stack(rows, axis=1).astype(np.float32)


def normalized(map_TYX: np.ndarray) -> np.ndarray:
    """Divide each frame by its sum; a frame of zeros is unchanged."""
    total = map_TYX.sum((1, 2), keepdims=True)
    return (map_TYX / np.where(total > 0, total, 1)).astype(np.float32)
