"""Stage 2 with a motion prior: what the loss is made of, what the latent and the history carry, what a robot gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray.align.demos import AlignConfig, StartFrom, from_dataset, resolve_configs
from tap_ray.align.objective import CloningWeights, OwnLoss, decayed
from tap_ray.dataset import layout
from tap_ray.dataset.action_chunks import ActionChunkConfig
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.dataset.reader import open_dataset, read_episode
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.evaluate.trained import latency
from tap_ray.models.heads import FlowHead
from tap_ray.models.inference import PolicyRunner, load_policy
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.prior_files import Source, TrainedPrior, load_prior
from tap_ray.pretrain.motion_prior import from_datasets
from tap_ray.training.batches import to_tensors
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.training.stage import FINAL
from tests.made_data import STEPS, write_made_dataset
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

TASKS = ("go left", "go to the right")
TINY = PriorConfig(chunk=4, latent=8, width=32, num_layers=1, num_heads=2)
WINDOWS = WindowConfig(batch_size=16, holdout_every=5, group_size=8)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory):
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("demos"), num_episodes=24, tasks=TASKS))


def prior(norm: NormStats | None = None, robot: str = SPEC.robot) -> TrainedPrior:
    torch.manual_seed(3)
    sources = [Source(spec=replace(SPEC, robot=robot), norm=norm, weight=1.0)] if norm else []
    return TrainedPrior(network=MotionPrior(TINY), sources=sources)


def aligned(demos, *, given: TrainedPrior | None, history: int = 0, **config):
    """Stage and windows of a flow head."""
    policy = replace(SMALL, head="flow", prior=TINY)
    how = AlignConfig(**config)
    policy, windows = resolve_configs(policy, WINDOWS, config=how, prior=given, history=history)
    return from_dataset(demos, windows, policy=policy, config=how, start=StartFrom(prior=given), seed=0)[0], windows


def batch_of(demos, stage, windows):
    """One batch as the objective hands it to the policy."""
    batch = to_tensors(next(iterate(demos, windows, seed=0)), torch.device("cpu"))
    spoken = {"tokens": stage.objective.tokens_UL, "sentence": batch["task_index"]}
    return batch | spoken


def last_first(score, items) -> list:
    """`map`, begun at the end."""
    return [score(item) for item in reversed(list(items))][::-1]


@pytest.mark.parametrize(
    ("step", "decay_steps", "weight"),
    [(0, 5000, 1.0), (1250, 5000, 0.75), (4999, 5000, 0.0002), (5000, 5000, 0), (9000, 5000, 0), (0, 0, 0), (7, 0, 0)],
)
def test_lambda_by_hand(step: int, decay_steps: int, weight: float):
    assert decayed(step, decay_steps) == pytest.approx(weight)


def test_the_loss_is_the_sum_of_its_parts(demos):
    stage, _ = aligned(demos, given=prior(), prior_steps=10)

    class FixedOutputs(torch.nn.Module):
        def forward(self, batch):
            parts = {"pred": torch.tensor(2.0), "align": torch.tensor(3.0), "recon": torch.tensor(5.0)}
            return parts if "chunk_state" in batch else {"pred": parts["pred"]}

    batch = {"task_index": torch.tensor([0, 1]), "chunk_state": torch.zeros(2, 4, 7)}
    for step, expected in ((0, 10.0), (5, 6.0), (10, 2.0), (99, 2.0)):
        loss, metrics = stage.objective.loss(FixedOutputs(), batch | {"step": torch.tensor(step)})
        assert float(loss) == pytest.approx(expected)
        assert float(metrics["bc/loss"]) == 2.0, "means the same at every lambda"
    assert float(stage.objective.loss(FixedOutputs(), batch)[0]) == 2.0, "the validation loss has no lambda"


def test_it_follows_instructions_and_does_so_after_loading(demos, tmp_path: Path):
    torch.set_num_threads(1)
    stage, windows = aligned(demos, given=prior(), history=3, prior_steps=40)
    steps = TrainConfig(steps=150, batch_size=16, lr=4e-3)
    metrics = fit(stage.model.network, iterate(demos, windows, seed=0), stage.objective, steps)
    assert metrics["bc/loss"] < 1.3
    metrics = stage.validate()
    assert metrics["bc/r2_dx"] > 0.5
    assert stage.validate(each=last_first) == metrics, "the noise of each batch is always the same"
    stage.save(tmp_path)
    policy, _ = load_policy(tmp_path)
    rgb, state = np.concatenate([w.rgb for w in stage.held_out])[:4], np.zeros((4, 7), np.float32)
    for task, sign in zip(TASKS, (-1, 1), strict=True):
        policy.reset({"rgb": rgb, "state": state}, {}, [0, 1, 2, 3])
        assert (sign * policy.chunk(rgb, state, [task] * 4)[:, 0, 0] > 0).all()


def test_the_prior_comes_with_its_own_statistics_if_it_knows_the_robot(demos):
    norm = replace(square_stats(), action=replace(square_stats().action, scale=(0.5,) * 6 + (1.0,)))
    same_robot, _ = aligned(demos, given=prior(norm))
    other_robot, _ = aligned(demos, given=prior(norm, "other"))
    assert same_robot.model.norm == norm
    assert other_robot.model.norm != norm
    for stage in (same_robot, other_robot):
        head = stage.model.network.head
        assert isinstance(head, FlowHead)
        assert torch.equal(head.prior.decoder.out.weight, prior().network.decoder.out.weight)
        assert torch.allclose(head.state_scale.scale, torch.tensor(stage.model.norm.state.scale))


def test_the_other_arm_of_the_comparison_has_the_statistics_alone(demos):
    norm = replace(square_stats(), action=replace(square_stats().action, scale=(0.5,) * 6 + (1.0,)))
    stage, _ = aligned(demos, given=prior(norm), prior_weights=False)
    assert stage.model.norm == norm
    assert stage.objective.decay_steps == 0
    weights = stage.model.network.head.prior.decoder.out.weight
    assert not torch.equal(weights, prior().network.decoder.out.weight)


def test_nothing_of_another_robots_places_is_learnt(demos):
    stage, windows = aligned(demos, given=prior(), history=2)
    policy = stage.model.network.train()
    out = policy(batch_of(demos, stage, windows))
    (out["pred"] + out["align"] + out["recon"]).backward()
    dims = policy.head.dim_mask(1)[0]
    assert dims.sum() == 7
    gradients = [policy.head.prior.decoder.out.weight.grad, policy.head.prior.encoder.action_in.weight.grad.T]
    for gradient in gradients:
        assert not gradient[~dims].any(), "exactly zero"
        assert gradient[dims].any()


def test_the_align_loss_has_no_gradient_into_the_encoder(demos):
    stage, windows = aligned(demos, given=prior())
    policy = stage.model.network.train()
    policy(batch_of(demos, stage, windows))["align"].backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.head.prior.encoder.parameters())
    assert policy.head.latent[0].weight.grad.any()


def test_training_averages_with_and_without_history(demos):
    stage, windows = aligned(demos, given=None, history=3)
    policy, batch = stage.model.network, batch_of(demos, stage, windows)
    latents = []
    policy.head.register_forward_hook(lambda _, __, out: latents.append(out))
    with torch.no_grad():
        policy.eval()(batch)
        policy.eval()({k: v for k, v in batch.items() if not k.startswith("past")})
        policy.train()(batch)
    with_it, without, both = latents
    assert not torch.allclose(with_it, without, atol=1e-4)
    # in training the vision tower normalizes by the batch, so compare what only the token changes
    assert both.shape[0] == 2 * len(with_it)
    assert not torch.allclose(both[: len(with_it)], both[len(with_it) :], atol=1e-4)


def test_what_has_not_happened_yet_is_not_remembered(demos):
    stage, windows = aligned(demos, given=None, history=3)
    policy, batch = stage.model.network.eval(), batch_of(demos, stage, windows)
    dirty = {**batch, "past_action": batch["past_action"].clone(), "past_state": batch["past_state"].clone()}
    dirty["past_action"][~batch["past_mask"]] = 1e3
    dirty["past_state"][~batch["past_mask"]] = -1e3
    noise = {"noise": torch.zeros(16, 4, 7)}
    with torch.no_grad():
        assert torch.allclose(policy(batch | noise)["action"], policy(dirty | noise)["action"], atol=1e-5)


def test_the_history_at_inference_equals_that_of_training_windows(demos):
    stage, _ = aligned(demos, given=None, history=3)
    policy = PolicyRunner(stage.model)
    episode = read_episode(demos, 0, [layout.STATE, layout.ACTION])
    state, action = np.array(episode.state), np.array(episode.action)
    rgb, info = np.zeros((1, *demos.header.image_size, 3), np.uint8), {"instruction": np.array([TASKS[0]])}
    policy.reset({"rgb": rgb, "state": state[:1]}, info, [0])
    executed = np.zeros((1, 7), np.float32)
    for step in range(STEPS):
        policy.act({"rgb": rgb, "state": state[step : step + 1]}, {**info, "action": executed})
        past = policy.buffers[0].past()
        there = np.arange(step - 3, step) >= 0
        np.testing.assert_array_equal(past["past_mask"], there)
        np.testing.assert_array_equal(past["past_state"][there], state[max(0, step - 3) : step])
        np.testing.assert_array_equal(past["past_action"][there], action[max(0, step - 3) : step])
        executed = action[step : step + 1]


def test_each_robots_noise_is_its_own(demos):
    stage, _ = aligned(demos, given=None)
    policy, rgb = PolicyRunner(stage.model), np.zeros((3, *demos.header.image_size, 3), np.uint8)
    obs, info = {"rgb": rgb, "state": np.zeros((3, 7), np.float32)}, {"instruction": np.array([TASKS[0]] * 3)}
    policy.reset(obs, info, [5, 6, 5])
    first = policy.act(obs, info)
    np.testing.assert_allclose(first[0], first[2], atol=1e-6)
    assert np.abs(first[0] - first[1])[:6].max() > 1e-5


def test_a_users_mistakes(demos, tmp_path: Path):
    with pytest.raises(ConfigError, match="--history needs --prior"):
        resolve_configs(SMALL, WINDOWS, config=AlignConfig(), prior=None, history=3)
    with pytest.raises(ConfigError, match=r"history must be in 0 \.\. 4 \(the prior's chunk\); got 5"):
        resolve_configs(SMALL, WINDOWS, config=AlignConfig(), prior=prior(), history=5)
    flow = replace(SMALL, head="flow")
    for wrong in ({"weights": CloningWeights(reach=1.0)}, {"weights": CloningWeights(crops=1.0)}):
        with pytest.raises(ConfigError, match="A flow head is trained on demonstrated actions alone"):
            resolve_configs(flow, WINDOWS, config=AlignConfig(**wrong), prior=None, history=0)
    with pytest.raises(ConfigError, match="A flow head is trained on demonstrated actions alone"):
        resolve_configs(flow, WINDOWS, config=AlignConfig(), prior=None, history=0, play=True)
    with pytest.raises(CheckpointError, match="contains no motion prior"):
        load_prior(tmp_path)


def test_a_prior_is_found_again(demos, tmp_path: Path):
    windows = ActionChunkConfig(horizon=4, batch_size=8, holdout_every=5)
    stage = from_datasets([demos.path], [1.0], windows, config=TINY, seed=0)
    stage.save(tmp_path)
    again = load_prior(tmp_path / FINAL)
    [source] = again.sources
    assert source.spec == SPEC
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), stage.network.parameters(), strict=True))
    metrics = stage.validate()
    assert metrics.keys() >= {"prior/square_r2", "prior/square_r2_dx"}
    assert stage.validate(each=last_first) == metrics
    assert isinstance(aligned(demos, given=again)[0].objective, OwnLoss)


def test_latency_is_told_with_and_without_history(demos, tmp_path: Path):
    stage, _ = aligned(demos, given=None, history=3)
    stage.save(tmp_path)
    took = latency(str(tmp_path))
    assert took.keys() == {"policy", "without history"}
    assert all(0 < ms < 1000 for ms in took.values())
