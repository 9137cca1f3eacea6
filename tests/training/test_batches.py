import numpy as np
import torch

from tap_ray.training.batches import AugmentConfig, _shift, augment, to_tensors
from tests.moving_square import square_window

CPU = torch.device("cpu")


def test_a_shift_moves_pixels_and_repeats_the_edge():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
    moved = _shift(image, torch.tensor([[1, 0]]))
    assert moved[0, :, :, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    moved = _shift(image, torch.tensor([[0, -1]]))
    assert moved[0, :, :, 0].tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]


def test_both_frames_of_a_pair_move_together():
    window = square_window(0, 0, batch=8, chunk=1, goal=True)
    batch = to_tensors(window, CPU)
    batch["goal_rgb"] = batch["rgb"].clone()
    changed = augment(batch, AugmentConfig(shift_px=4, jitter=0.2), seed=0, step=3, rank=0)
    assert torch.equal(changed["rgb"], changed["goal_rgb"])
    assert not torch.equal(changed["rgb"], batch["rgb"])
    assert changed["jitter"].abs().max() <= 0.2


def test_augmentation_follows_from_seed_step_and_rank_alone():
    batch = to_tensors(square_window(0, 0, batch=8, chunk=1, goal=True), CPU)
    config = AugmentConfig(shift_px=4, jitter=0.2)
    first = augment(batch, config, seed=0, step=3, rank=0)
    torch.rand(5)
    again = augment(batch, config, seed=0, step=3, rank=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (
        {"seed": 1, "step": 3, "rank": 0},
        {"seed": 0, "step": 4, "rank": 0},
        {"seed": 0, "step": 3, "rank": 1},
    ):
        assert not torch.equal(augment(batch, config, **other)["jitter"], first["jitter"])


def test_absent_fields_are_left_out():
    batch = to_tensors(square_window(0, 0, batch=2, chunk=3, goal=False), CPU)
    assert "goal_rgb" not in batch
    assert "reach" not in batch
    assert batch["action"].shape == (2, 3, 7)
    assert batch["rgb"].dtype == torch.uint8
    assert np.array_equal(augment(batch, AugmentConfig(), seed=0, step=0, rank=0)["rgb"].numpy(), batch["rgb"].numpy())
