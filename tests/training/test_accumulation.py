"""The gradient of several batches is that of one as large as all, whatever their masks leave."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tap_ray import bounds
from tap_ray.align.objective import BehaviorCloning
from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch
from tap_ray.models.motion_prior import FlowDecoder, PriorConfig
from tap_ray.models.reach import NUM_REACH
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig
from tap_ray.pretrain.motion_prior import FlowMatching
from tap_ray.training.accumulation import shares
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.types import Window
from tests.align.test_objective import ALL, TOKENS, demos, outputs
from tests.contexts import policy_with
from tests.moving_square import square_window

INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)


class Scaled(nn.Module):
    """Says what a batch has under "says_<name>", each output times a weight of its own."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.tensor(1.5)) for name in names})

    def forward(self, batch: Batch) -> Batch:
        return {name: weight * batch[f"says_{name}"] for name, weight in self.weights.items()}


def random_batch(seed: int) -> Batch:
    """As `demos`, with its answers, other numbers and other masks."""
    drawn = torch.Generator().manual_seed(seed)
    batch = demos() | {f"says_{name}": value for name, value in outputs().items()}
    for name, value in batch.items():
        if value.dtype == torch.bool:
            batch[name] = torch.rand(value.shape, generator=drawn) < 0.6
        elif value.dtype == torch.float32 and not name.endswith("px"):
            batch[name] = value + torch.rand(value.shape, generator=drawn)
    return batch | {"k": torch.randint(1, 3, (2,), generator=drawn)}


def summed(objective, batches: list[Batch]) -> tuple[dict[str, float], float]:
    """Gradients and loss of the mean of batches, as `fit` sums them."""
    model, losses = Scaled([*outputs(), "inverse_action"]), []
    for batch in batches:
        loss = objective.loss(model, batch)[0] / len(batches)
        losses.append(float(loss.detach()))
        loss.backward()
    found = {name: weight.grad for name, weight in model.weights.items()}
    return {name: float(value) for name, value in found.items() if value is not None}, sum(losses)


def joined(batches: list[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def cloning() -> BehaviorCloning:
    return BehaviorCloning(policy=policy_with("language", "crops", num_reach=NUM_REACH), tokens_UL=TOKENS, weights=ALL)


def from_play() -> FromPlay:
    return FromPlay(
        config=ObjectiveConfig(inverse_dynamics=0.7), policy=policy_with("crops", "goal", num_reach=NUM_REACH)
    )


@pytest.mark.parametrize("make", [cloning, from_play])
def test_each_mean_is_over_the_entries_of_all_batches(make):
    objective, batches = make(), [random_batch(seed) for seed in range(3)]
    for batch in batches:
        batch["says_inverse_action"] = batch["says_crop_action"]
    want, loss = summed(objective, [joined(batches)])
    assert summed(objective, batches)[0] != pytest.approx(want, rel=1e-2)  # the mean of ratios is another
    have, mean = summed(objective, list(shares(objective, batches)))
    assert have == pytest.approx(want, rel=1e-5)
    assert mean == pytest.approx(loss, rel=1e-5)


def test_counts_of_a_motion_prior():
    """One robot has 7 dims, the other 14."""
    step, dims = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 14, dtype=torch.bool)
    step[0, :3], step[1, :1], dims[0, :7], dims[1] = True, True, True, True
    config = PriorConfig(chunk=4, width=16, num_heads=2, num_layers=1, num_actions=14)
    batch = {"step_mask": step, "dim_mask": dims}
    assert float(FlowMatching().counts(batch)["loss"]) == 3 * 7 + 14
    decoder = FlowDecoder(config)
    decoder.velocity = lambda *_: torch.zeros(2, 4, 14)  # type: ignore[method-assign]
    torch.manual_seed(0)
    loss = decoder.loss(torch.zeros(2, 4, 14), torch.zeros(2, config.latent), dims, step)
    torch.manual_seed(0)
    noise = torch.randn(2, 4, 14)
    assert float(loss) == pytest.approx(float(noise[0, :3, :7].square().sum() + noise[1, 0].square().sum()) / 35)


class Color(nn.Module):
    """Two actions that follow from the mean color."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 14)
        nn.init.zeros_(self.linear.weight)

    def forward(self, batch: Batch) -> Batch:
        return {"action": self.linear(batch["rgb"].float().mean(dim=(1, 2)) / 255).unflatten(-1, (2, 7))}


def windows(rows: int) -> Iterator[Window]:
    """8 rows of the moving square at a time, `rows` in a batch; three of the first four chunks end after one step."""
    for number in range(6):
        whole = square_window(0, number, batch=8, chunk=2, goal=True)
        mask = np.ones((8, 2), bool)
        mask[:3, 1] = False
        whole = replace(whole, action_mask=mask, k=np.full(8, 2))
        for first in range(0, 8, rows):
            given = {name: value[first : first + rows] for name, value in vars(whole).items() if value is not None}
            yield Window(**given)


def test_a_step_of_several_batches_is_a_step_of_one_as_large():
    found = []
    for num in (1, 2, 4):
        torch.manual_seed(0)
        model, objective = Color(), FromPlay(config=INVERSE, policy=policy_with("goal"))
        config = TrainConfig(
            steps=6,
            batch_size=8 // num,
            gradient_accumulation_steps=num,
            bf16="off",
            log_every=1,
            checkpoint_every=0,
            validate_every=0,
            augment=AugmentConfig(shift_px=0),
        )
        last = fit(model, windows(8 // num), objective, config)
        found.append((torch.cat([value.detach().flatten() for value in model.parameters()]), last["play/loss"]))
    for weights, loss in found[1:]:
        torch.testing.assert_close(weights, found[0][0], rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(found[0][1], rel=1e-5)


def test_it_is_at_least_one():
    with pytest.raises(ConfigError, match=r"--gradient-accumulation-steps must be at least 1; got 0\."):
        bounds.check(TrainConfig(gradient_accumulation_steps=0))
