"""Stage 1 -> Stage 2 -> a policy that acts, on a tiny image-text model, for each head."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from tap_ray.align.demos import AlignConfig, StartFrom, from_dataset, resolve_configs
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import load_bundle
from tap_ray.models.fast import TokensConfig
from tap_ray.models.inference import load_policy
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.pretrain import from_play
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig, fit
from tests.made_data import write_made_dataset
from tests.tiny_vlm import tiny_vlm

TASKS = ("go left", "go to the right")
WINDOWS = WindowConfig(horizon=2, batch_size=16, holdout_every=5, group_size=8, k_max=2)
INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
SIZES = PolicyConfig(head_width=32, num_context=16, tokens=TokensConfig(), prior=PriorConfig(chunk=2, width=32))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory):
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("demos"), num_episodes=24, tasks=TASKS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("vlm"))


def sizes(source: str, head: str, **vlm) -> PolicyConfig:
    return replace(SIZES, head=head, vlm=VlmConfig(pretrained=source, **vlm))  # type: ignore[arg-type]


def pretrained(demos, policy: PolicyConfig, run: Path, *, steps: int = 2) -> Path:
    """A run folder of Stage 1, inverse dynamics."""
    stage = from_play.from_dataset(demos, WINDOWS, policy=policy, config=INVERSE, seed=0)
    windows = from_play.stage_windows(WINDOWS, INVERSE, policy)
    batches = iterate(demos, windows, seed=0)
    fit(stage.model.network, batches, stage.objective, TrainConfig(steps=steps, batch_size=16), lr_scale=stage.lr_scale)
    assert stage.validate()["play/val_loss"] < float("inf")
    stage.save(run)
    return run


def aligned(demos, policy: PolicyConfig, init: Path | None, *, steps: int = 2, lr: float = 2e-3):
    """Stage 2 after some steps, and what it took over."""
    config = AlignConfig()
    policy, windows = resolve_configs(policy, WINDOWS, config=config, prior=None, history=0)
    stage, transfer = from_dataset(demos, windows, policy=policy, config=config, start=StartFrom(init=init), seed=0)
    train = TrainConfig(steps=steps, batch_size=16, lr=lr)
    metrics = fit(stage.model.network, iterate(demos, windows, seed=0), stage.objective, train)
    return stage, transfer, metrics


@pytest.mark.parametrize("lora", [0, 2], ids=["whole", "lora"])
@pytest.mark.parametrize("head", ["regression", "flow", "tokens"])
def test_from_play_to_a_policy_that_acts(head: str, lora: int, demos, source: str, tmp_path: Path, monkeypatch):
    policy = sizes(source, head, freeze="vision", lora_rank=lora)
    init = pretrained(demos, policy, tmp_path / "stage_1")
    config = replace(SIZES, head=head, vlm=VlmConfig(lora_rank=lora))  # the model is Stage 1's
    stage, transfer, _ = aligned(demos, config, init)
    assert transfer is not None
    taken = {name.split(".")[0] for name in transfer.loaded}
    assert taken == {"model", "head", *({"readout"} if head != "tokens" else ())}
    assert {name.split(".")[0] for name in transfer.new if ".lora_" not in name} == {
        "action_scale", "state_in", "state_scale",
    }  # fmt: skip
    assert transfer.unused == ("action_scale.offset", "action_scale.scale")
    scores = stage.validate()
    assert np.isfinite(scores["bc/r2_dx"])
    stage.save(tmp_path / "stage_2")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)  # a saved policy needs it no more
    runner, spec = load_policy(tmp_path / "stage_2")
    rgb, state = np.zeros((3, 48, 48, 3), np.uint8), np.zeros((3, 7), np.float32)
    runner.reset({"rgb": rgb, "state": state}, {}, [1, 2, 3])
    info = {"instruction": np.array([TASKS[0], TASKS[1], "lift the carrot, please"])}
    for _ in range(3):
        action = runner.act({"rgb": rgb, "state": state}, info)
        assert action.shape == (3, 7)
        assert np.isfinite(action).all()
        assert set(np.abs(action[:, 6])) == {1.0}
    assert spec == stage.model.spec
    assert runner.latency_ms(repeats=1) > 0


def test_it_learns_to_follow_instructions(demos, source: str, tmp_path: Path):
    torch.set_num_threads(1)
    stage, _, _ = aligned(demos, replace(sizes(source, "regression"), num_state=0), None, steps=40, lr=1e-2)
    stage.save(tmp_path)
    runner, _ = load_policy(tmp_path)
    rgb = np.concatenate([window.rgb for window in stage.held_out])[:4]
    left, right = (runner.chunk(rgb, np.zeros((4, 7), np.float32), [task] * 4)[:, 0, 0] for task in TASKS)
    assert (left < -0.01).all()
    assert (right > 0.01).all()


def test_the_same_tokens_mean_the_same_motion_in_both_stages(demos, source: str, tmp_path: Path):
    init = pretrained(demos, sizes(source, "tokens"), tmp_path / "stage_1", steps=1)
    few = replace(WINDOWS, num_episodes=6)
    policy, windows = resolve_configs(sizes(source, "tokens"), few, config=AlignConfig(), prior=None, history=0)
    start = StartFrom(init=init)
    stage, _ = from_dataset(demos, windows, policy=policy, config=AlignConfig(), start=start, seed=0)
    before = load_bundle(init / "final")
    assert stage.model.norm == before.norm
    actions, stage_1_actions = (one.parts.actions for one in (stage.model.network, before.network))
    assert actions.bpe.to_str() == stage_1_actions.bpe.to_str()
    longer = replace(windows, horizon=3)
    with pytest.raises(
        ConfigError, match=r"trained on chunks of 2 steps, and its tokens head cannot change that; got chunks of 3"
    ):
        from_dataset(demos, longer, policy=policy, config=AlignConfig(), start=start, seed=0)
    with pytest.raises(ConfigError, match=r"was trained with a tokens head\. Use --policy\.head tokens"):
        from_dataset(demos, windows, policy=sizes(source, "flow"), config=AlignConfig(), start=start, seed=0)
    with pytest.raises(ConfigError, match=r'--align\.load of a VLM policy is "all" or "all_but_head"'):
        from_dataset(demos, windows, policy=policy, config=AlignConfig(load="vision"), start=start, seed=0)
    other = replace(policy, vlm=replace(policy.vlm, pretrained="elsewhere"))
    with pytest.raises(ConfigError, match=r"which differ from the given --policy\.vlm\."):
        from_dataset(demos, windows, policy=other, config=AlignConfig(), start=start, seed=0)


def test_what_a_vlm_cannot_be_asked(demos, source: str, tmp_path: Path):
    config = AlignConfig()
    windows = replace(WINDOWS, k_max=0, reach_steps=0, crops=False)

    def build(policy: PolicyConfig, **weights: float):
        align_config = replace(config, weights=replace(config.weights, **weights))
        return from_dataset(demos, windows, policy=policy, config=align_config, seed=0)

    with pytest.raises(ConfigError, match=r"--align\.weights\.point needs key points"):
        build(sizes(source, "regression"), point=1.0)
    with pytest.raises(ConfigError, match=r"The instruction 'go left' has \d tokens, but the policy reads at most 1\."):
        build(replace(sizes(source, "regression"), num_context=1))
    with pytest.raises(ConfigError, match=r"policy\.num_keypoints has no effect with --policy\.vlm\.pretrained"):
        build(replace(sizes(source, "regression"), num_keypoints=12))
    with pytest.raises(ConfigError, match=r"--policy\.head tokens needs --policy\.vlm\.pretrained"):
        build(replace(SIZES, head="tokens"))
    with pytest.raises(ConfigError, match=r"policy\.vlm\.freeze has no effect without --policy\.vlm\.pretrained"):
        build(replace(SIZES, vlm=VlmConfig(freeze="vision")))
    with pytest.raises(ConfigError, match=r"policy\.tokens\.scale has no effect without --policy\.head tokens"):
        build(replace(sizes(source, "regression"), tokens=TokensConfig(scale=5)))
    with pytest.raises(CheckpointError, match="contains no FAST tokenizer"):
        build(replace(sizes(source, "tokens"), tokens=TokensConfig(pretrained=str(tmp_path))))


def test_a_step_of_two_batches_is_a_step_of_one_as_large(demos, source: str):
    """Action tokens included, of which a batch has as many as its chunks happen to take."""
    found = []
    for num in (1, 2):
        policy, windows = resolve_configs(sizes(source, "tokens"), WINDOWS, config=AlignConfig(), prior=None, history=0)
        windows = replace(windows, batch_size=8 // num)
        stage, _ = from_dataset(demos, windows, policy=policy, config=AlignConfig(), seed=0)
        how = TrainConfig(steps=2, batch_size=8 // num, gradient_accumulation_steps=num, bf16="off", log_every=1)
        how = replace(how, augment=AugmentConfig(shift_px=0))
        metrics = fit(stage.model.network, iterate(demos, windows, seed=0), stage.objective, how)
        found.append((metrics["bc/loss"], metrics["bc/grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
