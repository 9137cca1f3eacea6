from dataclasses import replace

import pytest
import torch

from tap_ray import bounds
from tap_ray.errors import ConfigError
from tap_ray.training.batches import AugmentConfig, augment, shift_images, to_tensors
from tests.moving_square import square_window

CPU = torch.device("cpu")
CHANGED = AugmentConfig(shift_px=4, jitter=0.2)
HERE = {"seed": 0, "step": 3, "rank": 0}


def pairs(num: int = 8):
    """A batch whose goal images are its images, with crops and with windows of play that are the same again."""
    window = square_window(0, 0, batch=num, chunk=1, goal=True, crops=True)
    return to_tensors(replace(window, goal_rgb=window.rgb, play=replace(window, goal_rgb=None)), CPU)


def test_a_shift_moves_pixels_and_repeats_the_edge():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
    moved = shift_images(image, torch.tensor([[1, 0]]))
    assert moved[0, :, :, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    moved = shift_images(image, torch.tensor([[0, -1]]))
    assert moved[0, :, :, 0].tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]


def test_both_frames_of_a_pair_move_together_and_play_by_itself():
    batch = pairs()
    assert torch.equal(batch["play_rgb"], batch["rgb"])
    changed = augment(batch, CHANGED, **HERE)
    assert torch.equal(changed["rgb"], changed["goal_rgb"])
    assert not torch.equal(changed["rgb"], batch["rgb"])
    assert not torch.equal(changed["play_rgb"], batch["rgb"])
    assert not torch.equal(changed["play_rgb"], changed["rgb"])
    for name in ("jitter", "play_jitter"):
        assert changed[name].shape == (8, 2)
        assert 0 < changed[name].abs().max() <= 0.2
    assert not torch.equal(changed["jitter"], changed["play_jitter"])


def test_the_frames_of_a_segment_move_together():
    rows = torch.arange(64)
    image = torch.randint(0, 255, (1, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"rgb": image.repeat(64, 1, 1, 1), "goal_row": torch.where(rows % 16 == 15, rows, rows + 1)}
    changed = augment(batch, CHANGED, **HERE)
    for name in ("rgb", "jitter"):
        segments = changed[name].unflatten(0, (4, 16))
        assert torch.equal(segments, segments[:, :1].expand_as(segments))
        assert len(segments[:, 0].unique(dim=0)) == 4, "each in its own way"


def test_by_default_images_move_by_up_to_four_pixels_and_nothing_else_changes_them():
    dot = torch.zeros(400, 48, 48, 3, dtype=torch.uint8)
    dot[:, 20, 30] = 255
    changed = augment({"rgb": dot}, AugmentConfig(), **HERE)
    assert set(changed) == {"rgb"}
    window, row, column = changed["rgb"][..., 0].nonzero(as_tuple=True)
    assert window.tolist() == list(range(400)), "each dot once"
    assert set((row - 20).tolist()) == set((column - 30).tolist()) == set(range(-4, 5))


def test_where_things_are_moves_with_the_images():
    dot = torch.zeros(400, 48, 48, 3, dtype=torch.uint8)
    dot[:, 20, 30] = 255
    px = torch.tensor([[20.0, 30.0], [1.0, 46.0]]).expand(400, 2, 2)
    mask = torch.ones(400, 2, dtype=torch.bool)
    play = {"play_rgb": dot, "play_crop_px": px, "play_crop_px_mask": mask}
    changed = augment({"rgb": dot, "crop_px": px, "crop_px_mask": mask} | play, AugmentConfig(), **HERE)
    for prefix in ("", "play_"):
        _, row, column = changed[f"{prefix}rgb"][..., 0].nonzero(as_tuple=True)
        place = torch.stack([row, column], dim=1)
        at = changed[f"{prefix}crop_px"]
        assert torch.equal(at[:, 0], place.float())
        edge = (place + torch.tensor([-19, 16])).clamp(0, 47)  # what would lie outside is at the edge
        assert torch.equal(at[:, 1], edge.float())


def test_crops_are_mirrored_each_by_itself():
    batch = pairs(64)
    ramp = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1).expand(64, 12, 12, 3)
    names = ("object_crop", "place_crop", "play_object_crop", "play_place_crop")
    batch |= dict.fromkeys(names, ramp)
    changed = augment(batch, AugmentConfig(), **HERE)
    mirrored = {}
    for name in names:
        mirrored[name] = changed[name][:, 0, 0, 0] == 11
        assert torch.equal(changed[name], torch.where(mirrored[name][:, None, None, None], ramp.flip(2), ramp))
        assert 16 < int(mirrored[name].sum()) < 48, "about one half"
    assert len({tuple(rows.tolist()) for rows in mirrored.values()}) == 4
    assert torch.equal(changed["crop_mask"], batch["crop_mask"])


def test_augmentation_follows_from_seed_step_and_rank_alone():
    batch = pairs()
    before = {name: value.clone() for name, value in batch.items()}
    first = augment(batch, CHANGED, **HERE)
    torch.rand(5)
    again = augment(batch, CHANGED, **HERE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(batch[name], before[name]) for name in before), "its argument stays as it is"
    for other in ({"seed": 1}, {"step": 4}, {"rank": 1}):
        assert not torch.equal(augment(batch, CHANGED, **HERE | other)["jitter"], first["jitter"])


def test_without_randomization_nothing_changes():
    batch = pairs()
    assert augment(batch, AugmentConfig(shift_px=0), **HERE) is batch
    with pytest.raises(
        ConfigError, match=r"--shift-px must be at least 0; got -1\.\n.*jitter must be in \[0, 1\]; got -0\.1"
    ):
        bounds.check(AugmentConfig(shift_px=-1, jitter=-0.1))


def test_absent_fields_are_left_out_and_those_of_play_begin_with_it():
    batch = to_tensors(square_window(0, 0, batch=2, chunk=3, goal=False), CPU)
    assert set(batch) == {"rgb", "k", "state", "action", "action_mask", "task_index"}
    assert batch["action"].shape == (2, 3, 7)
    assert batch["rgb"].dtype == torch.uint8
    play = square_window(1, 0, batch=5, chunk=3, goal=False, crops=True)
    batch = to_tensors(replace(square_window(0, 0, batch=2, chunk=3, goal=False), play=play), CPU)
    crops = {"object_crop", "place_crop", "crop_mask", "crop_px", "crop_px_mask"}
    assert {name for name in batch if name.startswith("play_")} == {
        f"play_{name}"
        for name in {"rgb", "k", "state", "action", "action_mask", "task_index", "reach", "reach_mask"} | crops
    }
    assert batch["play_action"].shape == (5, 3, 7)
