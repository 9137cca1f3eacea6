import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray.align.demos import AlignConfig, demo_windows, from_dataset
from tap_ray.align.transfer import freeze, init_from, learning_rates
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import WindowConfig, iterate
from tap_ray.errors import CheckpointError, ConfigError, DataError, SpecError
from tap_ray.models.build import Trained, new_policy, save_policy
from tap_ray.models.deploy import load_policy
from tap_ray.models.language import word_tokenizer
from tap_ray.models.policy import PolicyConfig
from tap_ray.training.loop import TrainConfig, fit
from tests.made_data import write_made_dataset
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

TASKS = ("go left", "go to the right")
WINDOWS = WindowConfig(horizon=2, batch_size=16, holdout_every=5, group_size=8)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory):
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("demos"), num_episodes=24, tasks=TASKS))


@pytest.fixture
def stage_1(tmp_path: Path) -> Path:
    policy = new_policy(replace(SMALL, num_reach=6), seed=7)
    policy.set_norm(square_stats())
    save_policy(tmp_path / "stage_1" / "final", Trained(policy=policy, spec=SPEC, norm=square_stats(), tokenizer=None))
    return tmp_path / "stage_1"


def spoken(seed: int = 1):
    policy = new_policy(replace(SMALL, context="language"), seed=seed, tokenizer=word_tokenizer(TASKS))
    policy.action_scale.set([0.01] * 7, [0.02] * 7)
    return policy


def test_from_scratch_it_does_what_the_words_say(demos, tmp_path: Path):
    torch.set_num_threads(1)
    stage, transfer = from_dataset(demos, WINDOWS, policy=SMALL, config=AlignConfig(), init=None, seed=0)
    assert transfer is None
    windows = iterate(demos, demo_windows(WINDOWS), seed=0)
    metrics = fit(stage.model.policy, windows, stage.objective, TrainConfig(steps=60, batch_size=16, lr=2e-3))
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


def test_what_is_taken_what_is_new_and_what_stays_behind(stage_1: Path):
    policy = spoken()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    transfer = init_from(policy, stage_1)
    parts = {kind: {name.split(".")[0] for name in getattr(transfer, kind)} for kind in ("taken", "new", "left_behind")}
    assert parts["taken"] == {"vision", "vision_in", "place", "queries", "trunk", "squeeze", "head"}
    assert parts["new"] == {"language", "context_in", "context_place", "action_scale"}
    assert parts["left_behind"] == {
        "goal",
        "mix",
        "context_in",
        "context_place",
        "action_scale",
        "reach",
        "reach_scale",
    }
    source = new_policy(replace(SMALL, num_reach=6), seed=7).state_dict()
    assert torch.equal(policy.state_dict()["trunk.norm.weight"], source["trunk.norm.weight"])
    assert torch.equal(policy.state_dict()["vision_in.weight"], source["vision_in.weight"])
    assert torch.equal(policy.state_dict()["context_in.weight"], before["context_in.weight"])


def test_the_head_predicts_the_same_metres_under_other_statistics(stage_1: Path):
    policy = spoken()
    init_from(policy, stage_1)
    old = new_policy(replace(SMALL, num_reach=6), seed=7)
    old.set_norm(square_stats())
    read = torch.randn(3, policy.head.out.in_features)
    have = policy.action_scale.inverse(policy.head.out(read).unflatten(-1, (2, 7)))
    assert torch.allclose(have, old.action_scale.inverse(old.head.out(read).unflatten(-1, (2, 7))), atol=1e-6)


def test_less_can_be_taken(stage_1: Path):
    assert {name.split(".")[0] for name in init_from(spoken(), stage_1, "vision").taken} == {"vision"}
    assert "head.out.weight" in init_from(spoken(), stage_1, "all_but_head").new
    with pytest.raises(ConfigError, match=r"Unknown part 'vison' to take over\. Did you mean 'vision'\?"):
        init_from(spoken(), stage_1, "vison")  # type: ignore[arg-type]


def test_slow_and_frozen_parts(demos, stage_1: Path):
    config = AlignConfig(freeze=("vision",), transferred_lr=0.1)
    stage, _ = from_dataset(demos, WINDOWS, policy=SMALL, config=config, init=stage_1, seed=0)
    assert stage.lr_scale == learning_rates("all", 0.1)
    assert stage.lr_scale["trunk."] == 0.1
    policy = stage.model.policy
    before = {name: value.clone() for name, value in policy.vision.state_dict().items()}
    windows = iterate(demos, demo_windows(WINDOWS), seed=0)
    fit(policy, windows, stage.objective, TrainConfig(steps=2, batch_size=16), lr_scale=stage.lr_scale)
    assert all(torch.equal(value, before[name]) for name, value in policy.vision.state_dict().items())
    with pytest.raises(ConfigError, match=r"Cannot freeze 'visoin'\. Did you mean 'vision'\?"):
        freeze(policy, ("visoin",))


def test_stage_1_sizes_win_over_the_command_line(demos, stage_1: Path):
    asked = replace(PolicyConfig(), num_context=SMALL.num_context, language=SMALL.language)
    stage, transfer = from_dataset(demos, WINDOWS, policy=asked, config=AlignConfig(), init=stage_1, seed=0)
    assert transfer is not None
    assert stage.model.policy.config == replace(SMALL, context="language")
    wrong = replace(asked, width=64, vision=replace(asked.vision, stem_width=5))
    with pytest.raises(ConfigError, match=r"has another policy\.width, policy\.vision than asked for"):
        from_dataset(demos, WINDOWS, policy=wrong, config=AlignConfig(), init=stage_1, seed=0)


def test_a_longer_chunk_goes_on_with_stage_1s_last_step(demos, stage_1: Path):
    longer = replace(WINDOWS, horizon=WINDOWS.horizon + 2)
    stage, _ = from_dataset(demos, longer, policy=SMALL, config=AlignConfig(), init=stage_1, seed=0)
    rows = stage.model.policy.head.out.weight.detach().unflatten(0, (longer.horizon, -1))
    assert torch.equal(rows[-1], rows[WINDOWS.horizon - 1])
    assert not torch.equal(rows[-1], rows[0])


def test_a_missing_or_unfit_stage_1_is_never_silent(demos, stage_1: Path, tmp_path: Path):
    def align(init: Path, **windows):
        return from_dataset(demos, replace(WINDOWS, **windows), policy=SMALL, config=AlignConfig(), init=init, seed=0)

    with pytest.raises(CheckpointError, match=r"nothing/final holds no policy"):
        align(tmp_path / "nothing")
    spec = stage_1 / "final" / "spec.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "robot": "circle"}))
    with pytest.raises(SpecError, match=r"do not fit each other(.|\n)*has 'square'(.|\n)*has 'circle'"):
        align(stage_1)
    weights = stage_1 / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cut off\?"):
        align(stage_1)


def test_play_is_not_demonstrations(tmp_path: Path):
    play = open_dataset(write_made_dataset(tmp_path / "play", num_episodes=6, tasks=("play",)))
    with pytest.raises(DataError, match="holds play, without instructions"):
        from_dataset(play, WINDOWS, policy=SMALL, config=AlignConfig(), init=None, seed=0)
