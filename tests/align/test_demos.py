import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray import bounds
from tap_ray.align.demos import AlignConfig, StartFrom, from_dataset, resolve_configs, resolve_windows
from tap_ray.align.objective import CloningWeights
from tap_ray.dataset.reader import open_dataset, read_episodes
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import CheckpointError, ConfigError, DataError, SpecError
from tap_ray.models.build import PolicyBundle, new_policy, save_bundle
from tap_ray.models.inference import load_policy
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.reach import NUM_REACH
from tap_ray.training.batches import to_tensors
from tap_ray.training.loop import TrainConfig, fit
from tests.made_data import write_made_dataset
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

TASKS = ("go left", "go to the right")
WINDOW_CONFIG = WindowConfig(horizon=2, batch_size=16, holdout_every=5, group_size=8)
WINDOWS = resolve_windows(WINDOW_CONFIG, CloningWeights())


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory):
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("demos"), num_episodes=24, tasks=TASKS))


@pytest.fixture
def stage_1(tmp_path: Path) -> Path:
    policy = new_policy(replace(SMALL, context=("crops",), num_reach=NUM_REACH), seed=7)
    policy.set_norm(square_stats())
    save_bundle(
        tmp_path / "stage_1" / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=None)
    )
    return tmp_path / "stage_1"


def test_from_scratch_it_does_what_the_words_say(demos, tmp_path: Path):
    torch.set_num_threads(1)
    stage, transfer = from_dataset(demos, WINDOWS, policy=SMALL, config=AlignConfig(), seed=0)
    assert transfer is None
    windows = iterate(demos, WINDOWS, seed=0)
    metrics = fit(stage.model.network, windows, stage.objective, TrainConfig(steps=60, batch_size=16, lr=2e-3))
    assert metrics["bc/loss"] < 1.5
    assert stage.validate()["bc/r2_dx"] > 0.8
    stage.save(tmp_path)
    policy, spec = load_policy(tmp_path)
    assert spec == SPEC
    rgb = np.concatenate([window.rgb for window in stage.held_out])[:4]
    state = np.zeros((4, 7), np.float32)
    left, right = (policy.chunk(rgb, state, [task] * 4)[:, 0, 0] for task in TASKS)
    assert (left < -0.01).all()
    assert (right > 0.01).all()


def test_slow_and_frozen_parts(demos, stage_1: Path):
    config = AlignConfig(freeze=("vision",), pretrained_lr_scale=0.1)
    stage, transfer = from_dataset(demos, WINDOWS, policy=SMALL, config=config, start=StartFrom(init=stage_1), seed=0)
    assert transfer is not None
    assert stage.lr_scale == dict.fromkeys(transfer.loaded, 0.1)
    policy = stage.model.network
    before = {name: value.clone() for name, value in policy.vision.state_dict().items()}
    windows = iterate(demos, WINDOWS, seed=0)
    fit(policy, windows, stage.objective, TrainConfig(steps=2, batch_size=16), lr_scale=stage.lr_scale)
    assert all(torch.equal(value, before[name]) for name, value in policy.vision.state_dict().items())


def test_stage_1_sizes_win_over_the_command_line(demos, stage_1: Path):
    config = replace(PolicyConfig(), num_context=SMALL.num_context, language=SMALL.language)
    stage, transfer = from_dataset(
        demos, WINDOWS, policy=config, config=AlignConfig(), start=StartFrom(init=stage_1), seed=0
    )
    assert transfer is not None
    assert stage.model.network.config == replace(SMALL, context=("language",))
    wrong = replace(config, map_width=48, vision=replace(config.vision, stem_width=5))
    with pytest.raises(ConfigError, match=r"which differ from the given --policy\.map-width, --policy\.vision\."):
        from_dataset(demos, WINDOWS, policy=wrong, config=AlignConfig(), start=StartFrom(init=stage_1), seed=0)


def test_a_missing_or_unfit_stage_1_is_never_silent(demos, stage_1: Path, tmp_path: Path):
    def align(init: Path, **windows):
        return from_dataset(
            demos, replace(WINDOWS, **windows), policy=SMALL, config=AlignConfig(), start=StartFrom(init=init), seed=0
        )

    with pytest.raises(CheckpointError, match=r"nothing/final contains no policy"):
        align(tmp_path / "nothing")
    spec = stage_1 / "final" / "spec.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "robot": "circle"}))
    with pytest.raises(SpecError, match=r"do not match:(.|\n)*has 'square'(.|\n)*has 'circle'"):
        align(stage_1)
    weights = stage_1 / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"truncated\?"):
        align(stage_1)


def test_play_is_not_demonstrations(tmp_path: Path):
    play = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play",)))
    with pytest.raises(DataError, match="contains play, which has no instructions"):
        from_dataset(play, WINDOWS, policy=SMALL, config=AlignConfig(), seed=0)


def test_windows_and_contexts_follow_from_the_terms_of_the_loss(demos):
    def of(play: bool = False, **weights: float):
        config = AlignConfig(weights=CloningWeights(**weights))
        _, windows = resolve_configs(SMALL, WINDOW_CONFIG, config=config, prior=None, history=0, play=play)
        return windows.crops, windows.reach_steps, windows.k_max

    assert of() == (False, 0, 0)
    assert of(play=True) == (False, 0, 0)
    assert of(reach=1.0) == (False, WINDOW_CONFIG.reach_steps, 0)
    assert of(crops=1.0) == of(context=1.0) == (True, 0, 0)

    def built(windows: WindowConfig, **more):
        stage, _ = from_dataset(demos, windows, policy=SMALL, config=AlignConfig(), seed=0, **more)
        return stage.model.network

    alone, with_reach = built(WINDOWS), built(replace(WINDOWS, reach_steps=2))
    with_play = built(WINDOWS, play=True)
    assert (alone.config.context, alone.config.num_reach) == (("language",), 0)
    assert (with_reach.config.context, with_reach.config.num_reach) == (("language",), NUM_REACH)
    assert (with_play.config.context, with_play.config.num_reach) == (("language", "crops"), NUM_REACH)
    assert (with_play.reach_scale.scale > 0.0009).all()


@pytest.mark.parametrize("reach_steps", [0, WINDOW_CONFIG.reach_steps], ids=["play alone has them", "demos too"])
def test_without_held_out_episodes_those_of_training_give_the_scale_of_reach_targets(demos, reach_steps: int):
    windows = replace(WINDOWS, holdout_every=0, reach_steps=reach_steps)
    stage, _ = from_dataset(demos, windows, policy=SMALL, config=AlignConfig(), play=True, seed=0)
    assert (list(stage.held_out), stage.validate()) == ([], {})
    tip = np.stack([episode.state[:, :3] for episode in read_episodes(demos, range(24))]).astype(np.float64)
    want = np.sqrt(((tip[:, 7] - tip[:, 0]) ** 2).mean(0))  # episodes of 8 steps have one displacement over 7
    np.testing.assert_allclose(stage.model.network.reach_scale.scale[:3], want, rtol=1e-5)


def test_demonstrations_under_their_own_crops(tmp_path: Path):
    path = write_made_dataset(tmp_path / "demos", num_episodes=10, tasks=TASKS, crops=True)
    config = AlignConfig(weights=CloningWeights(reach=1.0, crops=1.0, point=1.0, context=1.0))
    policy, windows = resolve_configs(
        SMALL, replace(WINDOW_CONFIG, reach_steps=2), config=config, prior=None, history=0, play=True
    )
    dataset = open_dataset(path)
    stage, _ = from_dataset(dataset, windows, policy=policy, config=config, play=True, seed=0)
    demos = next(iterate(dataset, windows, seed=0))
    play = next(iterate(dataset, replace(windows, batch_size=4), seed=1))
    loss, metrics = stage.objective.loss(
        stage.model.network, to_tensors(replace(demos, play=play), torch.device("cpu"))
    )
    names = ("loss", "reach", "crops", "point", "context", "play_action", "play_reach", "play_point")
    assert set(metrics) == {f"bc/{name}" for name in names}
    loss.backward()
    assert [n for n, p in stage.model.network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_batch_of_play_has_at_least_one_window():
    with pytest.raises(ConfigError, match="--play-batch must be at least 1; got 0"):
        bounds.check(AlignConfig(play_batch=0))
