from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tap_ray.pretrain.inverse_dynamics import (
    InverseDynamics,
    InverseDynamicsConfig,
    build,
    from_dataset,
    reach_moments,
)

from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import ConfigError, DataError
from tap_ray.models.build import load_trained, new_policy
from tap_ray.training.batches import to_tensors
from tap_ray.training.loop import Hooks, TrainConfig, fit
from tests.made_data import write_made_dataset
from tests.moving_square import SPEC, square_stats, square_window, square_windows
from tests.small import SMALL

CPU = torch.device("cpu")


def stage(**config):
    held_out = list(islice(square_windows(1, batch=64), 4))
    return build(
        spec=SPEC,
        norm=square_stats(),
        policy=SMALL,
        config=InverseDynamicsConfig(**config),
        held_out=held_out,
        seed=0,
    )


def test_it_learns_what_moved_the_square(tmp_path: Path):
    torch.set_num_threads(1)
    learner = stage(reach_weight=0.5)
    config = TrainConfig(steps=250, batch_size=64, validate_every=0, lr=2e-3)
    hooks = Hooks(validate=learner.validate)
    metrics = fit(learner.model.policy, square_windows(0, batch=64), learner.objective, config, hooks=hooks)
    assert min(metrics[f"idm/r2_{slot}"] for slot in ("dx", "dy", "dz")) > 0.9
    assert metrics["idm/gripper_accuracy"] > 0.95
    assert metrics["reach/r2"] > 0.9
    assert not {"idm/r2_drx", "idm/r2_gripper"} & set(metrics)  # the square never turns
    folder = learner.save(tmp_path)
    again = replace(learner, model=load_trained(folder))
    again = replace(again, objective=InverseDynamics(config=InverseDynamicsConfig(), policy=again.model.policy))
    assert again.validate()["idm/r2_dx"] == pytest.approx(metrics["idm/r2_dx"], abs=1e-6)


class Says(torch.nn.Module):
    """Predicts a given normalised action."""

    def __init__(self, action: torch.Tensor, reach: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out = {"action": action} | ({} if reach is None else {"reach": reach})

    def forward(self, batch):
        return self.out


def test_the_loss_counts_only_what_the_goal_shows():
    policy = new_policy(SMALL, seed=0)  # its scale is the identity
    batch = to_tensors(square_window(0, 0, batch=2, chunk=2, goal=True), CPU)
    batch |= {"action": torch.zeros(2, 2, 7), "k": torch.tensor([1, 2])}
    guess = torch.tensor([1.0, 3.0]).view(1, 2, 1).expand(2, 2, 7)
    narrow = InverseDynamics(config=InverseDynamicsConfig(), policy=policy)
    loss, metrics = narrow.loss(Says(guess), batch)
    assert float(loss) == pytest.approx((1 + 1 + 9) / 3)  # the first window's second step lies behind its goal
    assert set(metrics) == {"idm/loss", "idm/action_mse"}
    wide = InverseDynamics(config=InverseDynamicsConfig(beyond_goal=True), policy=policy)
    assert float(wide.loss(Says(guess), batch)[0]) == pytest.approx((1 + 1 + 9 + 9) / 4)


def test_the_reach_loss_is_weighted_and_masked():
    learner = stage(reach_weight=0.5)
    policy = learner.model.policy
    batch = to_tensors(square_window(0, 0, batch=2, chunk=2, goal=True), CPU)
    batch |= {"reach": torch.zeros(2, 6), "reach_mask": torch.tensor([[True] * 6, [False] * 6])}
    reach = torch.tensor([[2.0] * 6, [100.0] * 6])
    _, metrics = learner.objective.loss(Says(policy.action_scale(batch["action"]), reach), batch)
    assert float(metrics["idm/reach_mse"]) == pytest.approx(4.0)
    assert float(metrics["idm/loss"]) == pytest.approx(2.0)


def test_reach_moments_are_a_root_mean_square_over_what_exists():
    window = square_window(0, 0, batch=2, chunk=1, goal=True)
    reach = np.array([[0.3, 0, 0, 0.1, 0, 0], [0.4, 0, 0, 9, 9, 9]], np.float32)
    mask = np.array([[True] * 6, [True] * 3 + [False] * 3])
    offset, scale = reach_moments([replace(window, reach=reach, reach_mask=mask)])
    assert offset == [0.0] * 6
    assert scale == pytest.approx([(0.25 / 2) ** 0.5, 0.001, 0.001, 0.1, 0.001, 0.001])


def test_a_stage_from_a_data_set(tmp_path: Path):
    dataset = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play",)))
    windows = WindowConfig(horizon=3, k_max=2, reach_steps=2, batch_size=8, holdout_every=3)
    learner = from_dataset(dataset, windows, policy=SMALL, config=InverseDynamicsConfig(reach_weight=1.0), seed=0)
    assert learner.model.policy.config.chunk == 2, "no goal lies 3 steps ahead"
    assert {int(k) for window in learner.held_out for k in window.k} == {1, 2}
    plain = from_dataset(dataset, windows, policy=SMALL, config=InverseDynamicsConfig(), seed=0)
    assert {int(k) for window in plain.held_out for k in window.k} == {1}, "without reach the judgement is the paper's"
    metrics = learner.validate()
    assert {"idm/val_loss", "idm/r2_dx", "idm/r2_mean", "idm/gripper_accuracy", "reach/r2"} <= set(metrics)
    assert learner.validate() == metrics


def test_what_cannot_work_is_said_before_training(tmp_path: Path):
    dataset = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=4, tasks=("play",)))
    windows = WindowConfig(batch_size=4, holdout_every=2)
    reach = InverseDynamicsConfig(reach_weight=1.0)
    with pytest.raises(ConfigError, match=r"needs a goal image: --windows\.k-max at least 1"):
        from_dataset(dataset, replace(windows, k_max=0), policy=SMALL, config=InverseDynamicsConfig(), seed=0)
    with pytest.raises(ConfigError, match=r"needs reach targets: --windows\.reach-steps at least 1"):
        from_dataset(dataset, replace(windows, reach_steps=0), policy=SMALL, config=reach, seed=0)
    with pytest.raises(ConfigError, match="1 steps ahead cannot tell where the tip is after 7"):
        from_dataset(dataset, windows, policy=SMALL, config=reach, seed=0)
    with pytest.raises(DataError, match="no episode is held out"):
        from_dataset(dataset, replace(windows, holdout_every=19), policy=SMALL, config=InverseDynamicsConfig(), seed=0)
    unjudged = replace(windows, holdout_every=0)
    assert not from_dataset(dataset, unjudged, policy=SMALL, config=InverseDynamicsConfig(), seed=0).validate()
    spoken = replace(SMALL, context="language")
    with pytest.raises(ConfigError, match="play has no words"):
        from_dataset(dataset, windows, policy=spoken, config=InverseDynamicsConfig(), seed=0)
