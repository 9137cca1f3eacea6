"""Grad-CAM against values worked out by hand, and on networks of which it is known what they look at."""

import re
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from tap_ray.errors import ConfigError
from tap_ray.inspect import saliency as sal
from tap_ray.inspect.features import inputs
from tap_ray.inspect.saliency import saliency
from tap_ray.inspect.saliency_mass import saliency_mass
from tap_ray.models.build import PolicyBundle, new_policy
from tap_ray.models.language import word_tokenizer
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vision import VisionConfig
from tap_ray.types import FIRST_OBJECT, GRIPPER
from tests.moving_square import SIZE, SPEC, square_stats
from tests.small import SMALL

CELLS = replace(SMALL, context=("crops",), glimpse_px=0, vision=VisionConfig(widths=(16, 24), stem_width=16))
"""12 x 12 cells of 4 px."""
GLIMPSES = replace(CELLS, glimpse_px=16)
"""And windows, which fresh weights hold near the image's middle."""


class Patches(nn.Module):
    """A convolution by hand: 2 x 2 cells of 2 x 2 px; channel 0 is a cell's sum, channel 1 its top left pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, stride=2, bias=False)
        self.conv.weight.data = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])

    def forward(self, image_N1YX):
        return self.conv(image_N1YX)


class ByHand(nn.Module):
    """One motion slot, linear in the cells, and a gripper that must not matter."""

    def __init__(self, weight_PC) -> None:
        super().__init__()
        self.tower, self.weight_PC = Patches(), torch.tensor(weight_PC)

    def forward(self, batch):
        tokens_NPC = self.tower(batch["image"]).flatten(2).transpose(1, 2)
        dx = (tokens_NPC * self.weight_PC).sum((1, 2))
        return {"action": torch.stack([dx, 100 * tokens_NPC.sum((1, 2))], dim=-1)[:, None]}


def map_of(weight_PC, image_YX, sign):
    policy = ByHand(weight_PC)
    batch = {"image": torch.tensor(image_YX, dtype=torch.float32)[:, None]}
    moves = torch.tensor([True, False])
    return sal.grad_cam(policy, [policy.tower], batch, moves, sign=sign)[0].tolist()


IMAGE = [[0.0, 1.0, 4.0, -2.0], [0.0, 0.0, 0.0, 0.0], [8.0, -5.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
"""Cells' sums 1 2 3 4, their top left pixels 0 4 8 0."""


def test_grad_cam_by_hand():
    # a = mean of 2 A0 - A1 over the cells = mean of 2 0 -2 8 = 2; ds/dA = 2 (2, -1) / 4 in every cell, which is its own
    # mean; so the map is (2, 0, -2, 8) / 2.
    everywhere = [[0.5, -0.25]] * 4
    assert map_of(everywhere, [IMAGE], "abs") == [[[1.0, 0.0], [1.0, 4.0]]]
    assert map_of(everywhere, [IMAGE], "positive") == [[[1.0, 0.0], [0.0, 4.0]]]


def test_the_sign_of_the_motion_does_not_matter():
    assert map_of([[-0.5, 0.25]] * 4, [IMAGE], "positive") == [[[1.0, 0.0], [0.0, 4.0]]]


def test_frames_of_a_batch_do_not_mix():
    dark = np.zeros((4, 4)).tolist()
    both = map_of([[0.5, -0.25]] * 4, [dark, IMAGE], "abs")
    assert both == [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 4.0]]]


def test_the_mean_over_cells_hides_a_channel_with_both_signs():
    # A known limit. a = A0 of the first cell minus A0 of the second; ds/dA0 = -1, 1, 0, 0, and their mean is 0.
    by_place = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert map_of(by_place, [IMAGE], "abs") == [[[0.0, 0.0], [0.0, 0.0]]]


def test_enlarging_by_hand():
    assert sal.upsampling_matrix(np.array([0.0, 2.0]), 4).tolist() == [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    assert sal.upsampling_matrix(np.array([0.5, 2.5]), 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


def test_glimpses_are_laid_where_their_windows_were():
    # 4 px windows of 2 x 2 cells on 8 px: the first around the image's middle, the second around its top left corner.
    maps = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]], [[0.0, 0.0], [0.0, 12.0]]]])
    [found] = sal.laid(maps, torch.tensor([[[0.0, 0.0], [-1.0, -1.0]]]), 4, 8).tolist()
    expected = np.zeros((8, 8))
    expected[2:4, 2:4], expected[4:6, 4:6] = 1.0, 2.0  # a cell's evidence is shared by its four pixels
    expected[0:2, 0:2] = 3.0
    assert found == expected.tolist()


def test_frames_add_up_to_one():
    maps = sal.normalized(np.array([[[1.0, 3.0]], [[0.0, 0.0]]]))
    assert maps.tolist() == [[[0.25, 0.75]], [[0.0, 0.0]]]


def trained(config: PolicyConfig, seed: int = 0) -> PolicyBundle:
    tokenizer = word_tokenizer(["go left", "go right"]) if "language" in config.context else None
    policy = new_policy(config, seed=seed, tokenizer=tokenizer)
    policy.set_norm(square_stats())
    return PolicyBundle(network=policy.eval(), spec=SPEC, norm=square_stats(), tokenizer=tokenizer)


def images(seed: int, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames with a square that says where to go and a green one that says nothing, on dark gray.

    Returns images, which body the pixel shows (GRIPPER: the first square), and (num, 3) what it says: its color, -1
    blue or 1 red, and its column and row, -1 .. 1.
    """
    rng = np.random.default_rng(seed)
    rgb, whose = np.full((num, SIZE, SIZE, 3), 60, np.uint8), np.zeros((num, SIZE, SIZE), np.uint8)
    says = np.zeros((num, 3), np.float32)
    for frame in range(num):
        # Never in one row of cells, so that neither hides the other.
        rows = rng.permutation([rng.integers(0, 14), rng.integers(24, 38)])
        columns, value = rng.integers(0, 38, 2), rng.choice([-1.0, 1.0])
        for row, column, first in zip(rows, columns, (True, False), strict=True):
            spot = (frame, slice(row, row + 10), slice(column, column + 10))
            rgb[spot] = (128 + 120 * value, 0, 128 - 120 * value) if first else (0, rng.integers(100, 255), 0)
            whose[spot] = GRIPPER if first else FIRST_OBJECT
        says[frame] = value, (columns[0] - 19) / 19, (rows[0] - 19) / 19
    return rgb, whose, says


def enrichment(of: PolicyBundle, rgb: np.ndarray, whose: np.ndarray, sign: sal.Sign = "abs") -> dict[str, float]:
    state = np.zeros((len(rgb), 7), np.float32)
    looks = saliency(of, rgb, rgb, state=state, sentence=["go left"] * len(rgb), sign=sign)["image"]
    found = saliency_mass(looks.map_TYX, whose)
    return {name: mass / pixels for name, (mass, pixels) in found.items() if pixels > 0}


COLOR, PLACE = slice(0, 1), slice(1, 3)


def planted(what: slice, config: PolicyConfig = CELLS) -> PolicyBundle:
    """A policy that has learned to move as the first square says, by its color or by its place."""
    torch.set_num_threads(1)
    made = trained(config)
    policy, optimizer = made.network.train(), torch.optim.AdamW(made.network.parameters(), lr=2e-3)
    for step in range(200):
        rgb, _, says = images(100 + step, 32)
        batch = inputs(made, rgb, rgb, state=np.zeros((32, 7), np.float32), sentence=[])
        target = torch.from_numpy(says[:, what])
        loss = ((policy(batch)["action"][:, 0, : target.shape[1]] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    policy.eval()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [CELLS, pytest.param(GLIMPSES, marks=pytest.mark.long_proof)], ids=["cells", "glimpses"]
)
def test_a_policy_that_reacts_to_the_color_of_one_square_looks_at_it(config: PolicyConfig):
    rgb, whose, _ = images(9, 40)
    made = planted(COLOR, config)
    found = enrichment(made, rgb, whose)
    assert found["gripper"] > 2.5  # the square that says something
    assert found["objects"] < 1  # the one that does not


@pytest.mark.slow
@pytest.mark.long_proof
def test_a_policy_that_goes_where_a_square_lies_looks_at_it():
    rgb, whose, _ = images(9, 40)
    made = planted(PLACE)
    found = enrichment(made, rgb, whose)
    assert found["gripper"] > 2.5
    assert found["objects"] < 1
    assert enrichment(made, rgb, whose, "positive")["gripper"] > 2.5


def test_untrained_networks_look_anywhere():
    # Noise, in which no place is like another and none is special: shares are those of the pixels.
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (60, SIZE, SIZE, 3), np.uint8)
    _, whose, _ = images(9, 60)
    found = [enrichment(trained(CELLS, seed), rgb, whose)["gripper"] for seed in range(4)]
    assert np.mean(found) == pytest.approx(1, abs=0.15)


def test_a_cell_of_a_padded_tower_looks_around_its_stride():
    # What a cell depends on is symmetric about the pixel it looks around, far from the borders.
    tower = trained(replace(SMALL, image_size=160)).network.vision.eval()
    middles = sal.cell_middles_px(tower, 160, 20)
    assert middles.tolist() == list(range(0, 160, 8))
    image = 255 * torch.rand(8, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    tower(image)[0][:, :, 11, 9].square().sum().backward()
    weight_YX = image.grad.abs().sum((0, 1)).numpy()  # type: ignore[union-attr]
    row, column = np.mgrid[:160, :160]
    assert (row * weight_YX).sum() / weight_YX.sum() == pytest.approx(middles[11], abs=2.5)
    assert (column * weight_YX).sum() / weight_YX.sum() == pytest.approx(middles[9], abs=2.5)


def test_a_patch_looks_around_its_middle():
    vit = VisionConfig(kind="vit", patch_px=16, vit_width=16, vit_layers=1)
    tower = trained(replace(SMALL, vision=vit)).network.vision
    assert sal.cell_middles_px(tower, SIZE, 3).tolist() == [7.5, 23.5, 39.5]


FLOW = PriorConfig(chunk=4, latent=8, width=16, num_layers=1, num_heads=2, num_steps=2)
LANGUAGE = replace(CELLS, context=("language",))


@pytest.mark.parametrize(
    ("config", "views"),
    [
        (replace(CELLS, context=("goal",)), ["image", "goal"]),
        (CELLS, ["image"]),
        (replace(CELLS, context=("crops", "goal"), num_reach=9), ["image"]),
        (LANGUAGE, ["image"]),
        (replace(LANGUAGE, vision=replace(CELLS.vision, frozen=True)), ["image"]),
        (replace(LANGUAGE, vision=VisionConfig(kind="vit", patch_px=8, vit_width=16, vit_layers=1)), ["image"]),
        (replace(LANGUAGE, head="flow", chunk=4, prior=FLOW, num_motion_states=7), ["image"]),
        (replace(LANGUAGE, head="flow", chunk=4, prior=FLOW, num_motion_states=7, history=2), ["image"]),
    ],
    ids=["goal", "crops", "crops and goal", "stage 2", "frozen tower", "transformer", "flow", "flow with history"],
)
@pytest.mark.parametrize("sign", ["abs", "positive"])
def test_every_policy_can_be_looked_into(config: PolicyConfig, views: list[str], sign: sal.Sign):
    of = trained(config)
    if config.head == "flow":
        of.network.head.set_layout(SPEC)
    rgb, _, _ = images(3, 5)
    state, words = np.zeros((5, 7), np.float32), ["go left", "go right", "go left", "go left", "go right"]
    grads = [parameter.requires_grad for parameter in of.network.parameters()]
    looks, again = (saliency(of, rgb, rgb[::-1].copy(), state=state, sentence=words, sign=sign) for _ in range(2))
    assert list(looks) == views
    for view in views:
        seen = looks[view].map_TYX
        assert (seen.shape, seen.dtype) == ((5, SIZE, SIZE), np.float32)
        assert seen.min() >= 0
        total = seen.sum((1, 2))
        assert (np.isclose(total, 1, atol=1e-5) | (total == 0)).all()
        assert total.any()
        np.testing.assert_array_equal(seen, again[view].map_TYX)
    assert grads == [parameter.requires_grad for parameter in of.network.parameters()]
    assert all(parameter.grad is None for parameter in of.network.parameters())


@pytest.mark.parametrize("towers", ["own", "shared"])
def test_each_camera_has_a_map_of_its_own(towers: Literal["own", "shared"]):
    """A head that reads nothing of the wrist's key points: its map is empty, and the first camera's is as before."""
    of = trained(replace(LANGUAGE, num_cameras=2, camera_towers=towers))
    of = replace(of, spec=replace(SPEC, cameras=("main", "wrist")))
    rgb = np.stack([images(seed, 5)[0] for seed in (3, 4)], axis=1)

    def look(rgb: np.ndarray) -> dict[str, np.ndarray]:
        maps = saliency(of, rgb, rgb, state=np.zeros((5, 7), np.float32), sentence=["go left"] * 5)
        return {name: each.map_TYX for name, each in maps.items()}

    both = look(rgb)
    assert list(both) == ["image", "wrist image"]
    np.testing.assert_allclose(both["wrist image"].sum((1, 2)), 1, atol=1e-5)
    points = 3 * LANGUAGE.num_keypoints
    with torch.no_grad():
        of.network.readout[0].weight[:, points : 2 * points] = 0
    blind = look(rgb)
    assert not blind["wrist image"].any()
    assert blind["image"].any()
    rgb[:, 1] = rgb[::-1, 1].copy()
    np.testing.assert_allclose(look(rgb)["image"], blind["image"], rtol=1e-4, atol=1e-7)


def test_what_it_is_told_to_look_for_matters():
    of, (rgb, _, _) = trained(CELLS), images(3, 5)
    crop = np.random.default_rng(0).integers(0, 255, (5, 12, 12, 3), np.uint8)
    crops = {"object_crop": crop, "place_crop": crop, "crop_mask": np.array([[True, True]] * 2 + [[False, False]] * 3)}
    state = np.zeros((5, 7), np.float32)
    one, other = (saliency(of, rgb, rgb, state=state, sentence=[], crops=c)["image"].map_TYX for c in (crops, None))
    np.testing.assert_allclose(one[2:], other[2:], atol=1e-6)
    assert np.abs(one[:2] - other[:2]).max() > 1e-5


def test_images_of_another_size():
    rgb = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(ConfigError, match=re.escape("trained on 48 x 48 images; got (32, 32)")):
        saliency(trained(CELLS), rgb, rgb, state=np.zeros((1, 7), np.float32), sentence=[""])
