import gc
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tap_ray.config import to_dict
from tap_ray.errors import CheckpointError, ConfigError, DataError, TapRayError
from tap_ray.models.build import new_policy
from tap_ray.models.precision import autocast, has_bf16
from tap_ray.models.weights import read_tensors
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig
from tap_ray.training import checkpoint
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import Hooks, TrainConfig, fit
from tests.moving_square import square_stats, square_windows
from tests.small import SMALL

INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
AUGMENT = AugmentConfig(shift_px=2, jitter=0.1)
SHORT = TrainConfig(
    steps=8, batch_size=8, log_every=1, checkpoint_every=3, validate_every=4, ema_decay=0.9, augment=AUGMENT
)


class Recorder:
    """Hooks that keep what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.metadata = folder, [], {"policy": to_dict(SMALL)}

    def hooks(self) -> Hooks:
        return Hooks(log=self.log, save=self.save, validate=lambda: {"play/r2_dx": 0.5}, metadata=self.metadata)

    def log(self, metrics, step: int) -> None:
        self.lines.append((step, dict(metrics)))

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        write(self.folder / checkpoint.STEP_FOLDER.format(step=step))


class Noisy(FromPlay):
    """Draws as flow matching does: from torch's global generator."""

    def loss(self, model, batch):
        loss, parts = super().loss(model, batch)
        return loss * (1 + torch.rand(())), parts | {"play/loss": loss * torch.rand(())}


def learner(objective=FromPlay):
    policy = new_policy(replace(SMALL, context=INVERSE.context), seed=0)
    policy.set_norm(square_stats())
    return policy, objective(config=INVERSE, policy=policy)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bf16", ["auto", "off"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, bf16):
    config = TrainConfig(**{**SHORT.__dict__, "bf16": bf16})
    whole = Recorder(tmp_path / "whole")
    policy, objective = learner(Noisy)
    fit(policy, square_windows(0, batch=8), objective, config, hooks=whole.hooks())
    rest = Recorder(tmp_path / "rest")
    resumed, objective = learner(Noisy)
    newest = checkpoint.latest(whole.folder)
    assert newest == whole.folder / "step-00000008"
    start = whole.folder / "step-00000003"
    fit(resumed, square_windows(0, batch=8, start=3), objective, config, hooks=rest.hooks(), resume=start)
    losses = {step: line["play/loss"] for step, line in whole.lines if "play/loss" in line and step > 3}
    assert {step: line["play/loss"] for step, line in rest.lines if "play/loss" in line} == losses
    assert len(losses) == 5
    for name, value in policy.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_models_draw_follows_from_the_seed(tmp_path: Path):
    """Whatever has been drawn from torch's generator before."""
    lines = []
    for state in (1, 2):
        recorder = Recorder(tmp_path / str(state))
        policy, objective = learner(Noisy)
        torch.manual_seed(state)
        fit(policy, square_windows(0, batch=8), objective, SHORT, hooks=recorder.hooks())
        lines.append([line["play/loss"] for _, line in recorder.lines if "play/loss" in line])
    assert lines[0] == lines[1]


def test_lines_hold_what_a_reader_of_the_curve_needs(tmp_path: Path):
    recorder = Recorder(tmp_path)
    policy, objective = learner()
    last = fit(policy, square_windows(0, batch=8), objective, SHORT, hooks=recorder.hooks())
    assert {
        "play/loss",
        "play/inverse_mse",
        "play/grad_norm",
        "play/lr",
        "play/data_wait_s",
        "play/samples_per_s",
    } <= set(last)
    assert last["play/r2_dx"] == 0.5
    validated = [step for step, line in recorder.lines if set(line) == {"play/r2_dx", "play/validate_s"}]
    assert validated == [4, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000006", "step-00000008"]


class Line(nn.Module):
    """y = w x, w = 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


class Constant:
    """Loss whose gradient is always the same: AdamW then moves w by the learning rate each step."""

    name = "line"

    def loss(self, model, batch):
        loss = -model.w * batch["action"].sum() * 0 - model.w
        return loss, {"line/loss": loss}


class Weighted(Constant):
    """Loss of a linear layer."""

    def loss(self, model, batch):
        loss = model(torch.linspace(-1, 1, 101)).square().mean()
        return loss, {"line/loss": loss}


def test_the_averaged_weights_are_the_ones_kept():
    model = Line()
    config = TrainConfig(steps=2, lr=1.0, warmup_fraction=0.0, ema_decay=0.5, weight_decay=0.0, bf16="off")
    fit(model, square_windows(0, batch=2), Constant(), config)
    # w: 0 -> 1 (rate 1) -> 1.5 (rate 1/2); decay, still warming up: 2/11, 3/12; average: 0 -> 9/11 -> 1.3295
    assert float(model.w.detach()) == pytest.approx(0.25 * 9 / 11 + 0.75 * 1.5, abs=1e-4)


def test_averaged_weights_are_validated_without_a_copy_of_the_others(tmp_path: Path):
    """Weights, average, gradients and two moments of a matrix of 99 x 101 are all there is of it, and no bit of them
    changes."""
    config = TrainConfig(steps=3, batch_size=2, validate_every=0, log_every=0, checkpoint_every=1, ema_decay=0.9)
    validated: list[tuple[Tensor, int]] = []

    def learned(validates: int, folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Linear(101, 99)

        def validate() -> dict[str, float]:
            live = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.shape == (99, 101)]
            memories = {one.untyped_storage().data_ptr() for one in live}
            validated.append((model.weight.detach().clone(), len(memories) - len(validated)))
            return {}

        hooks = Hooks(save=Recorder(folder).save, validate=validate)
        fit(model, square_windows(0, batch=2), Weighted(), replace(config, validate_every=validates), hooks=hooks)

    learned(1, tmp_path / "validated")
    assert len(validated) == 3
    for step, (weight, _) in enumerate(validated, start=1):
        kept = tmp_path / "validated" / checkpoint.STEP_FOLDER.format(step=step)
        assert torch.equal(weight, read_tensors(kept / "ema.safetensors")["weight"])
        assert not torch.equal(weight, read_tensors(kept / "model.safetensors")["weight"])
    assert {copies for _, copies in validated} == {5}
    learned(0, tmp_path / "plain")
    for name in ("model", "ema", "optimizer"):
        have, want = (
            read_tensors(tmp_path / kind / checkpoint.STEP_FOLDER.format(step=3) / f"{name}.safetensors")
            for kind in ("validated", "plain")
        )
        assert have.keys() == want.keys()
        assert all(torch.equal(have[key], want[key]) for key in want)


def test_batches_that_end_too_early_are_an_error():
    windows = [window for window, _ in zip(square_windows(0, batch=2), range(3), strict=False)]
    with pytest.raises(DataError, match=r"The batches ended at step 3\. Use an iterator that repeats"):
        fit(Line(), iter(windows), Constant(), TrainConfig(steps=5))


class Broken(Constant):
    def loss(self, model, batch):
        loss = model.w * float("nan")
        return loss, {"line/loss": loss}


def test_a_loss_that_is_not_a_number_stops_the_run():
    with pytest.raises(TapRayError, match=r"The loss is nan after 2 steps\. Lower --lr"):
        fit(Line(), square_windows(0, batch=2), Broken(), TrainConfig(steps=4, log_every=2))


def test_resuming_from_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        fit(Line(), square_windows(0, batch=2), Constant(), SHORT, resume=tmp_path / "step-00000100")


def test_precision_is_chosen_by_the_machine_or_by_the_user():
    cpu = torch.device("cpu")
    with autocast("on", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast("auto", cpu):
        assert ((torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16) == has_bf16(cpu)
    with pytest.raises(ConfigError, match=r'--bf16 must be "auto", "on" or "off"; got \'yes\'\.'):
        autocast("yes", cpu)


def test_windows_of_the_moving_square_are_reproducible():
    first, again = next(square_windows(0, start=5)), next(square_windows(0, start=5))
    assert np.array_equal(first.rgb, again.rgb)
