"""Stage 1: its loss by hand, and that it learns what the made-up robot does."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray import bounds
from tap_ray.dataset.mixture import open_mixture
from tap_ray.dataset.reader import open_dataset, read_episodes
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import ConfigError, DataError
from tap_ray.models.build import load_bundle
from tap_ray.models.reach import NUM_REACH, reach_moments, shown
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig, build, from_dataset, from_mixture
from tap_ray.training.loop import Hooks, TrainConfig, fit
from tests.contexts import batch_with, policy_with
from tests.made_data import write_made_dataset
from tests.moving_square import SPEC, square_stats, square_window, square_windows
from tests.small import SMALL, VISION

INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)


def stage(config: ObjectiveConfig, **policy):
    kind = {"goal": config.inverse_dynamics > 0, "crops": config.next_object > 0}
    held_out = list(islice(square_windows(1, batch=64, **kind), 4))
    sizes = replace(SMALL, **policy)
    return build(spec=SPEC, norm=square_stats(), policy=sizes, config=config, held_out=held_out, seed=0), kind


@pytest.mark.slow
def test_it_learns_to_go_to_the_thing_in_the_crop(tmp_path: Path):
    torch.set_num_threads(1)
    learner, kind = stage(ObjectiveConfig())
    config = TrainConfig(steps=220, batch_size=32, validate_every=0, lr=4e-3)
    hooks = Hooks(validate=learner.validate)
    metrics = fit(learner.model.network, square_windows(0, batch=32, **kind), learner.objective, config, hooks=hooks)
    assert min(metrics[f"play/r2_{slot}"] for slot in ("dx", "dy", "dz")) > 0.9
    assert metrics["play/gripper_accuracy"] > 0.95
    assert min(metrics[f"play/r2_{target}"] for target in ("move", "contact", "release")) > 0.9
    folder = learner.save(tmp_path)
    again = replace(learner, model=load_bundle(folder))
    again = replace(again, objective=FromPlay(config=ObjectiveConfig(), policy=again.model.network))
    assert again.validate()["play/r2_dx"] == pytest.approx(metrics["play/r2_dx"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.long_proof
def test_it_learns_what_moved_the_square():
    torch.set_num_threads(1)
    learner, kind = stage(INVERSE, vision=replace(VISION, widths=(16, 24)))  # cells of 4 px: it moves by 3 px at most
    config = TrainConfig(steps=600, batch_size=32, validate_every=0, lr=2e-3)
    hooks = Hooks(validate=learner.validate)
    metrics = fit(learner.model.network, square_windows(0, batch=32, **kind), learner.objective, config, hooks=hooks)
    assert min(metrics[f"play/r2_{slot}"] for slot in ("dx", "dy", "dz")) > 0.9
    assert metrics["play/gripper_accuracy"] > 0.95
    assert not {"play/r2_drx", "play/r2_gripper", "play/r2_move"} & set(metrics)  # the square never turns


class FixedOutputs(torch.nn.Module):
    """Predicts what it is given, normalized."""

    def __init__(self, **out: torch.Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, batch):
        return self.out


def two_windows(policy):
    """Actions 0, but the first window's 1 and 3 off; what the loss needs beside them."""
    batch = batch_with("goal", "crops", num=2)
    batch |= {"action": torch.zeros(2, 2, 7), "action_mask": torch.tensor([[True, True], [True, False]])}
    policy.action_scale.set([0.0] * 7, [1.0] * 7)
    return batch


def test_the_actions_behind_the_second_image_do_not_count():
    policy = policy_with("goal")
    batch = two_windows(policy) | {"k": torch.tensor([1, 2]), "action_mask": torch.ones(2, 2, dtype=torch.bool)}
    guess = torch.tensor([1.0, 3.0]).view(1, 2, 1).expand(2, 2, 7)
    loss, metrics = FromPlay(config=INVERSE, policy=policy).loss(FixedOutputs(action=guess), batch)
    assert float(loss) == pytest.approx((1 + 1 + 9) / 3)  # the first window's second step lies behind its goal
    assert set(metrics) == {"play/loss", "play/inverse_mse"}
    double, _ = FromPlay(config=replace(INVERSE, inverse_dynamics=2.0), policy=policy).loss(
        FixedOutputs(action=guess), batch
    )
    assert float(double) == pytest.approx(2 * 11 / 3)


def test_the_weights_by_hand():
    policy = policy_with("crops", "goal", num_reach=NUM_REACH)
    batch = two_windows(policy) | {"k": torch.tensor([2, 1])}
    batch |= {"reach": torch.zeros(2, NUM_REACH), "reach_mask": torch.ones(2, NUM_REACH, dtype=torch.bool)}
    batch["crop_px"], batch["crop_px_mask"] = torch.zeros(2, 2, 2), torch.tensor([[True, False], [True, True]])
    model = FixedOutputs(
        action=torch.tensor([[[1.0], [2.0]], [[3.0], [100.0]]]).expand(2, 2, 7),
        inverse_action=torch.tensor([[[2.0], [4.0]], [[0.0], [100.0]]]).expand(2, 2, 7),
        reach=torch.full((2, NUM_REACH), 2.0),
        keypoint_logprob=torch.tensor([[-1.0, -50.0, -50.0, -50.0], [-4.0, -60.0, -60.0, -60.0]]).expand(2, 2, 4),
    )
    config = ObjectiveConfig(next_object=0.5, reach=0.25, point=0.1, inverse_dynamics=3.0)
    loss, metrics = FromPlay(config=config, policy=policy).loss(model, batch)
    parts = {name: float(value) for name, value in metrics.items()}
    action, inverse, reach = (1 + 4 + 9) / 3, (4 + 16 + 0) / 3, 4.0
    assert parts["play/action_mse"] == pytest.approx(action)
    assert parts["play/inverse_mse"] == pytest.approx(inverse)
    assert parts["play/reach_mse"] == pytest.approx(reach)
    point = (1 + 1 + 4) / 3  # the first cell: two things, one place
    assert parts["play/point_nats"] == pytest.approx(point)
    expected = 0.5 * (action + 0.25 * reach + 0.1 * point) + 3 * inverse
    assert float(loss) == parts["play/loss"] == pytest.approx(expected)


def test_only_what_the_crops_tell_of_is_a_target():
    rows = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    #          move     contact  release   yaws
    expected = [[1] * 3 + [1] * 3 + [1] * 3 + [1] * 4,
                [1] * 3 + [1] * 3 + [0] * 3 + [1] * 4,
                [1] * 3 + [0] * 3 + [0] * 3 + [0] * 4,
                [1] * 3 + [0] * 3 + [0] * 3 + [0] * 4]  # fmt: skip
    assert shown(rows).int().tolist() == expected

    policy = policy_with("crops", num_reach=NUM_REACH)
    batch = batch_with("crops") | {"crop_mask": rows, "reach": torch.zeros(4, NUM_REACH)}
    batch["reach_mask"] = torch.tensor(
        [[True] * 13] * 3 + [[False] * 3 + [True] * 10]
    )  # the last window's is not known
    reach = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat_interleave(torch.tensor([3, 3, 3, 4])).expand(4, NUM_REACH)
    _, metrics = FromPlay(config=ObjectiveConfig(), policy=policy).loss(
        FixedOutputs(action=batch["action"], reach=reach, keypoint_logprob=torch.zeros(4, 2, 4)), batch
    )
    # Targets: 3 moves (1), 2 contacts (4), 1 release (9), three axes each; 2 rows with four numbers of yaw (16).
    assert float(metrics["play/reach_mse"]) == pytest.approx((9 * 1 + 6 * 4 + 3 * 9 + 8 * 16) / 26)


def test_reach_moments_are_a_root_mean_square_over_what_exists():
    window = square_window(0, 0, batch=2, chunk=1, goal=True)
    reach = np.array([[0.3, 0, 0, 0.1, 0, 0, 0, 0, 0], [0.4, 0, 0, 9, 9, 9, 9, 9, 0.2]], np.float32)
    mask = np.array([[True] * 6 + [False] * 3, [True] * 3 + [False] * 5 + [True]])
    offset, scale = reach_moments([replace(window, reach=reach, reach_mask=mask)])
    assert offset == [0.0] * 9
    assert scale == pytest.approx([(0.25 / 2) ** 0.5, 0.001, 0.001, 0.1, 0.001, 0.001, 0.001, 0.001, 0.2])
    yaws = np.zeros((2, NUM_REACH), np.float32)  # no window shows a grasp: its cosines are of size one all the same
    _, scale = reach_moments([replace(window, reach=yaws, reach_mask=np.zeros((2, NUM_REACH), bool))])
    assert scale == pytest.approx([0.001] * 9 + [0.3] * 4)
    with pytest.raises(
        ConfigError, match=r"needs windows with reach targets\. Set --windows\.reach-steps to at least 1"
    ):
        reach_moments([replace(window, reach=None)])


def test_windows_carry_what_is_asked_for_and_nothing_else():
    windows = WindowConfig(k_max=3, reach_steps=7)
    both = ObjectiveConfig(inverse_dynamics=1.0)
    resolved = {
        name: config.windows(windows) for name, config in {"play": ObjectiveConfig(), "inverse": INVERSE}.items()
    }
    assert ObjectiveConfig().context == ("crops",)
    assert INVERSE.context == ("goal",)
    assert both.context == ("crops", "goal")
    seen = {name: (one.crops, one.k_max, one.reach_steps) for name, one in resolved.items()}
    assert seen == {"play": (True, 0, 7), "inverse": (False, 3, 0)}
    assert [resolved["play"].horizon, resolved["inverse"].horizon] == [4, 3], "none beyond the second image"
    assert replace(both.windows(windows), crops=False) == windows
    assert ObjectiveConfig(reach=0.0).windows(windows).reach_steps == 0


def test_inverse_dynamics_from_a_data_set(tmp_path: Path):
    dataset = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play",)))
    windows = WindowConfig(k_max=2, batch_size=8, holdout_every=3)
    learner = from_dataset(dataset, windows, policy=SMALL, config=INVERSE, seed=0)
    assert learner.model.network.config.chunk == 2, "no second image lies 4 steps ahead, the default"
    with pytest.raises(ConfigError, match=r"--windows\.horizon 3 has no effect: .*Give --windows\.horizon 2, or raise"):
        from_dataset(dataset, replace(windows, horizon=3), policy=SMALL, config=INVERSE, seed=0)
    assert learner.model.network.config.context == ("goal",)
    assert learner.model.network.config.num_reach == 0
    assert {int(k) for window in learner.held_out for k in window.k} == {1}, "held-out windows are the paper's"
    metrics = learner.validate()
    assert {"play/val_loss", "play/r2_dx", "play/r2_mean", "play/gripper_accuracy"} <= set(metrics)
    assert learner.validate() == metrics


def test_a_mixture_is_validated_by_its_shares(tmp_path: Path):
    paths = [write_made_dataset(tmp_path / name, num_episodes=6, tasks=("play",), crops=True) for name in "ab"]
    windows = WindowConfig(k_max=2, batch_size=8, holdout_every=3)
    for config in (INVERSE, ObjectiveConfig(inverse_dynamics=0.5)):
        mixture = open_mixture(paths, [3.0, 1.0])
        learner = from_mixture(mixture, windows, policy=SMALL, config=config, seed=0)
        assert [len(window.k) for window in learner.held_out] == [6, 6, 2] + [2] * 7, "14 windows of each"
        found = learner.validate()
        shares = [found[f"play/{name}_val_loss"] for name in ("a", "b")]
        assert found["play/val_loss"] == pytest.approx(np.mean(shares)), "14 windows of each"
        assert {f"play/{name}_{metric}" for name in "ab" for metric in ("r2_mean", "gripper_accuracy")} <= set(found)


def test_the_next_object_from_a_data_set(tmp_path: Path):
    path = write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play", "play"), crops=True)
    windows = WindowConfig(horizon=3, reach_steps=2, batch_size=8, holdout_every=3)
    learner = from_dataset(open_dataset(path), windows, policy=SMALL, config=ObjectiveConfig(), seed=0)
    config = learner.model.network.config
    assert (config.context, config.chunk, config.num_reach) == (("crops",), 3, NUM_REACH)
    assert sum(len(window.rgb) for window in learner.held_out) == 16, "every step of two episodes: no second image"
    assert all(window.goal_rgb is None for window in learner.held_out)
    crop_mask = np.concatenate([window.crop_mask for window in learner.held_out if window.crop_mask is not None])
    assert crop_mask[:, 0].sum() == 2 * 5, "frames 0 .. 4 lead to the touch in step 4"
    moved = [abs(window.reach[:, 3:6][window.reach_mask[:, 3:6]]).max() for window in learner.held_out]
    assert 0.01 < max(moved) < 0.1
    metrics = learner.validate()
    kinds = {f"play/r2_{kind}" for kind in ("move", "contact", "release")}
    assert {"play/val_loss", "play/r2_mean", "play/gripper_accuracy", *kinds} <= set(metrics)
    assert learner.validate() == metrics


def test_without_held_out_episodes_those_of_training_give_the_scale_of_reach_targets(tmp_path: Path):
    dataset = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play",), crops=True))
    windows = WindowConfig(reach_steps=2, batch_size=8, holdout_every=0)
    learner = from_dataset(dataset, windows, policy=SMALL, config=ObjectiveConfig(), seed=0)
    assert (list(learner.held_out), learner.validate()) == ([], {})
    tip = np.stack([episode.state[:, :3] for episode in read_episodes(dataset, range(6))]).astype(np.float64)
    want = np.sqrt(((tip[:, 2:] - tip[:, :-2]) ** 2).mean((0, 1)))  # 2 steps ahead, of all steps of all episodes
    np.testing.assert_allclose(learner.model.network.reach_scale.scale[:3], want, rtol=1e-5)


def test_what_cannot_work_is_said_before_training(tmp_path: Path):
    dataset = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=4, tasks=("play",)))
    windows = WindowConfig(batch_size=4, holdout_every=2)
    with pytest.raises(ConfigError, match=r"needs a second image\. Set --windows\.k-max to at least 1"):
        from_dataset(dataset, replace(windows, k_max=0), policy=SMALL, config=INVERSE, seed=0)
    with pytest.raises(ConfigError, match=r"needs reach targets\. Set --windows\.reach-steps to at least 1"):
        from_dataset(dataset, replace(windows, reach_steps=0), policy=SMALL, config=ObjectiveConfig(), seed=0)
    with pytest.raises(DataError, match="no episode is held out"):
        from_dataset(dataset, replace(windows, holdout_every=19), policy=SMALL, config=INVERSE, seed=0)
    with pytest.raises(DataError, match="has no robot masks"):
        from_dataset(dataset, windows, policy=SMALL, config=ObjectiveConfig(), seed=0)
    none_held_out = replace(windows, holdout_every=0)
    assert not from_dataset(dataset, none_held_out, policy=SMALL, config=INVERSE, seed=0).validate()
    with pytest.raises(ConfigError, match="Stage 1 trains a regression head"):
        from_dataset(dataset, windows, policy=replace(SMALL, head="flow"), config=INVERSE, seed=0)
    with pytest.raises(ConfigError, match=r"have weight 0\. Give next_object or inverse_dynamics a weight above 0"):
        ObjectiveConfig(next_object=0.0)
    with pytest.raises(
        ConfigError, match=r"--objective\.reach 0\.5 has no effect: .*Omit it, or give --objective\.next-o"
    ):
        ObjectiveConfig(next_object=0, inverse_dynamics=1, reach=0.5)
    with pytest.raises(ConfigError, match=r"--objective\.point 1 has no effect"):
        ObjectiveConfig(next_object=0, inverse_dynamics=1, point=1)
    with pytest.raises(
        ConfigError, match=r"--reach must be at least 0; got -1\.\n.*inverse-dynamics must be at least 0; got -2"
    ):
        bounds.check(ObjectiveConfig(reach=-1.0, inverse_dynamics=-2.0))
