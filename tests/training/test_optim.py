import pytest
import torch
from torch import nn

from tap_ray.training.optim import adamw, names_in_order, schedule, set_learning_rate


def test_schedule_is_a_ramp_then_half_a_cosine():
    factors = [schedule(step, num_steps=12, warmup_fraction=1 / 6) for step in range(12)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)  # halfway through the ten steps behind the ramp
    assert 0 < factors[-1] < 0.03
    assert schedule(0, num_steps=5, warmup_fraction=0.0) == 1.0


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def test_only_matrices_decay():
    model = two_layers()
    optimizer = adamw(model, lr=1.0, weight_decay=0.05)
    decay = {g["weight_decay"]: [p.ndim for p in g["params"]] for g in optimizer.param_groups}
    assert decay == {0.05: [2, 2], 0.0: [1, 1, 1, 1]}


def test_longest_prefix_scales_the_rate_and_frozen_parameters_are_left_out():
    model = two_layers()
    model.get_submodule("1").requires_grad_(False)
    optimizer = adamw(model, lr=1.0, weight_decay=0.0, lr_scale={"": 0.5, "0.": 0.1})
    peak = {name: group["peak_lr"] for group in optimizer.param_groups for name in _names(model, group)}
    assert peak == {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.5, "2.bias": 0.5}
    set_learning_rate(optimizer, 0.5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.25]
    assert names_in_order(model, optimizer) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def _names(model: nn.Module, group: dict) -> list[str]:
    return [name for name, p in model.named_parameters() if any(p is q for q in group["params"])]


def test_names_follow_the_optimizers_own_numbers():
    model = two_layers()
    optimizer = adamw(model, lr=0.1, weight_decay=0.05)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    moments = optimizer.state_dict()["state"]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for number, name in enumerate(names_in_order(model, optimizer)):
        assert tuple(moments[number]["exp_avg"].shape) == shapes[name]
