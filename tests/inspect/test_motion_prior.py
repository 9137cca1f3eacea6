"""What is told of a motion prior, on motion whose truth is known."""

import numpy as np
import pytest
import torch

from tap_ray.dataset.action_chunks import ActionChunkConfig, ActionChunks, batch
from tap_ray.dataset.norm_stats import NormStats, SlotNorm
from tap_ray.inspect.motion_prior import NUM_STEPS, PANELS, analyze, interpolate_latents, text
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.prior_files import Source, TrainedPrior
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, UNIFIED_ACTION, UNIFIED_STATE, RobotSpec
from tap_ray.training.batches import to_tensors

SPEC = RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
NORM = NormStats(
    state=SlotNorm(names=tuple(s.name for s in SPEC.state), offset=(0.0,) * 7, scale=(1.0,) * 7),
    action=SlotNorm(names=tuple(s.name for s in SPEC.action), offset=(0.0,) * 7, scale=(0.01,) * 6 + (1.0,)),
)
CONFIG = PriorConfig(chunk=4, latent=16, width=32, num_layers=1, num_heads=2)


def straight(num_episodes: int, seed: int) -> ActionChunks:
    """Episodes of one straight motion each, with a gripper that switches once in half of them."""
    rng, steps = np.random.default_rng(seed), 10
    action = np.zeros((num_episodes * steps, len(UNIFIED_ACTION)), np.float32)
    places = [UNIFIED_ACTION.index(f"arm0/{slot.name}") for slot in SPEC.action]
    action[:, places[:6]] = rng.normal(size=(num_episodes, 6)).repeat(steps, 0)
    when = rng.integers(0, 2 * steps, num_episodes).repeat(steps)
    action[:, places[6]] = np.where(np.tile(np.arange(steps), num_episodes) < when, 1, -1)
    dim_mask = np.zeros(len(UNIFIED_ACTION), bool)
    dim_mask[places] = True
    first = (np.arange(num_episodes)[:, None] * steps + np.arange(steps - CONFIG.chunk + 1)).reshape(-1)
    state = np.zeros((len(action), len(UNIFIED_STATE)), np.float32)
    return ActionChunks(spec=SPEC, norm=NORM, action_FA=action, state_FS=state, first_W=first, dim_mask_A=dim_mask)


@pytest.fixture(scope="module")
def trained() -> TrainedPrior:
    """A prior that has learned straight lines."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, windows, motions = MotionPrior(CONFIG), ActionChunkConfig(horizon=4, batch_size=64), straight(300, 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for number in range(300):
        motion = batch([motions], [1.0], windows, seed=0, number=number)
        optimizer.zero_grad()
        network(to_tensors(motion, torch.device("cpu")))["loss"].backward()
        optimizer.step()
    return TrainedPrior(network=network.eval(), sources=[Source(spec=SPEC, norm=NORM, weight=1.0)])


def test_what_is_told(trained: TrainedPrior):
    report = analyze(trained, trained.sources[0], straight(300, 0), straight(60, 1))
    assert set(report["slots"]) == {slot.name for slot in SPEC.action}
    assert min(report["slots"].values()) > 0.8
    assert list(report["steps"]) == [str(n) for n in NUM_STEPS]
    assert report["probe"]["dx"] > 0.8
    assert report["probe"].keys() == {"speed", "dx", "dy", "dz", "gripper switches"}
    assert report["smoothness"].keys() == {"data", "rebuilt", "random latents"}
    lines = text({"widowx": report}).splitlines()
    assert lines[0].startswith("robot")
    assert lines[1].startswith("widowx")


def test_an_untrained_prior_reconstructs_nothing():
    fresh = TrainedPrior(network=MotionPrior(CONFIG).eval(), sources=[])
    source = Source(spec=SPEC, norm=NORM, weight=1.0)
    report = analyze(fresh, source, straight(100, 0), straight(30, 1))
    assert max(report["slots"].values()) < 0.2


def test_the_way_between_two_opposite_motions(trained: TrainedPrior):
    held_out = straight(60, 1)
    way = interpolate_latents(trained, trained.sources[0], held_out)
    assert way.shape == (PANELS, 4, 7)
    ends = way[:, :, :3].sum(1)
    assert ends[0] @ ends[-1] < 0, "opposite"
    assert np.abs(ends[0]).max() > 0.02, "meters, not normalized numbers"
    towards = (ends - ends[0]) @ (ends[-1] - ends[0])
    assert (np.diff(towards) > 0).all(), "each panel is further on the way"
    np.testing.assert_array_equal(way, interpolate_latents(trained, trained.sources[0], held_out))
