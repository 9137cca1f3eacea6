"""Truths that a motion prior must know: the closed form of a Gaussian's flow, a few trajectories by heart, its mask."""

import pytest
import torch
from torch import Tensor

from tap_ray import bounds
from tap_ray.errors import ConfigError
from tap_ray.models.motion_prior import FlowDecoder, MotionPrior, PriorConfig

TINY = PriorConfig(chunk=4, latent=8, width=32, num_layers=2, num_heads=2, num_actions=5, num_states=3)


def batch_of(num: int, config: PriorConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """Random motions; the last two action places are padding."""
    generator = torch.Generator().manual_seed(seed)
    dim_mask = torch.ones(num, config.num_actions, dtype=torch.bool)
    dim_mask[:, -2:] = False
    action = torch.randn(num, config.chunk, config.num_actions, generator=generator) * dim_mask[:, None]
    state = torch.randn(num, config.chunk, config.num_states, generator=generator)
    step_mask = torch.ones(num, config.chunk, dtype=torch.bool)
    return {"action": action, "state": state, "step_mask": step_mask, "dim_mask": dim_mask}


def train(model: torch.nn.Module, loss_of, steps: int, lr: float = 2e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.long_proof
def test_the_velocity_of_a_gaussian_is_the_closed_form():
    """a ~ N(m, s^2), x = (1 - t) e + t a: E[a - e | x] = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m)."""
    torch.manual_seed(0)
    config = PriorConfig(chunk=1, latent=2, width=64, num_layers=1, num_heads=1, num_actions=1, num_states=1)
    decoder, mean, deviation = FlowDecoder(config), 0.7, 0.5
    latent, mask, steps = torch.ones(512, 2), torch.ones(512, 1, dtype=torch.bool), torch.ones(512, 1, dtype=torch.bool)
    train(decoder, lambda: decoder.loss(mean + deviation * torch.randn(512, 1, 1), latent, mask, steps), 1500)
    time = torch.linspace(0.05, 0.95, 10).repeat_interleave(7)
    spread = (time**2 * deviation**2 + (1 - time) ** 2).sqrt()
    x = time * mean + torch.linspace(-1.5, 1.5, 7).repeat(10) * spread
    expected = mean + (time * deviation**2 - (1 - time)) / spread**2 * (x - time * mean)
    with torch.no_grad():
        guess = decoder.velocity(x[:, None, None], time, latent[:70], mask[:70])[:, 0, 0]
    assert float((guess - expected).square().mean().sqrt()) < 0.12, "the target's own deviation is about 1"
    with torch.no_grad():
        drawn = decoder.sample(latent.repeat(8, 1), mask.repeat(8, 1), torch.randn(4096, 1, 1), num_steps=50)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.06)
    assert float(drawn.std()) == pytest.approx(deviation, abs=0.06)


@pytest.mark.long_proof
def test_eight_motions_are_learnt_by_heart():
    torch.manual_seed(0)
    prior, batch = MotionPrior(TINY), batch_of(8)
    train(prior, lambda: prior({k: v.repeat(8, *[1] * (v.ndim - 1)) for k, v in batch.items()})["loss"], 800)
    with torch.no_grad():
        latent = prior.encoder(batch["action"], batch["state"], batch["step_mask"])
        rebuilt = prior.decoder.sample(latent, batch["dim_mask"], torch.randn_like(batch["action"]), num_steps=20)
    assert float((rebuilt - batch["action"])[:, :, :-2].square().mean()) < 0.02, "of actions with variance 1"


def test_padding_changes_nothing():
    torch.manual_seed(0)
    prior, batch = MotionPrior(TINY), batch_of(3)
    noise = torch.randn(3, TINY.chunk, TINY.num_actions)
    latent = prior.encoder(batch["action"], batch["state"], batch["step_mask"])
    assert torch.allclose(latent.norm(dim=-1), torch.ones(3))
    sampled = prior.decoder.sample(latent, batch["dim_mask"], noise)
    assert not sampled[:, :, -2:].any()
    dirty = noise.clone()
    dirty[:, :, -2:] = 100.0
    assert torch.equal(prior.decoder.sample(latent, batch["dim_mask"], dirty), sampled)
    prior(batch)["loss"].backward()
    gradient = prior.decoder.out.weight.grad
    assert gradient is not None
    assert not gradient[-2:].any(), "exactly zero"
    assert gradient[:-2].any()
    for layer in (prior.decoder.action_in, prior.encoder.action_in, prior.decoder.mask_in):
        assert layer.weight.grad is not None
        assert not layer.weight.grad[:, -2:].any()


def test_steps_that_are_not_there_change_nothing():
    torch.manual_seed(0)
    prior, batch = MotionPrior(TINY).eval(), batch_of(2)
    batch["step_mask"][:, 2:] = False
    other = {**batch, "action": batch["action"].clone(), "state": batch["state"].clone()}
    other["action"][:, 2:], other["state"][:, 2:] = 9.0, -9.0
    one, two = (prior.encoder(b["action"], b["state"], b["step_mask"]) for b in (batch, other))
    assert torch.allclose(one, two, atol=1e-6)


def test_impossible_sizes():
    with pytest.raises(ConfigError, match=r"prior\.width must be a multiple of prior\.num_heads; got 97 and 3"):
        PriorConfig(width=97, num_heads=3)
    with pytest.raises(ConfigError, match=r"prior\.width must be a multiple of prior\.num_heads; got 96 and 0"):
        PriorConfig(width=96, num_heads=0)
    with pytest.raises(ConfigError, match="--num-steps must be at least 1; got 0"):
        bounds.check(PriorConfig(num_steps=0))
