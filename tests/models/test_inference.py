import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy, save_bundle
from tap_ray.models.inference import load_policy
from tap_ray.models.language import word_tokenizer
from tap_ray.models.precision import acting_bf16
from tests.moving_square import SIZE, SPEC, square_stats, square_window
from tests.small import SMALL
from tests.tiny_vlm import tiny_vlm
from tests.untrained import untrained_vlm_run

SENTENCES = ["go left", "go to the right"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A policy that always predicts dx = 0.02 m, dz = 1 m, gripper 0.1, and 0.03, 1, -0.1 a step later."""
    tokenizer = word_tokenizer(SENTENCES)
    policy = new_policy(replace(SMALL, context=("language",)), seed=0, tokenizer=tokenizer)
    policy.set_norm(square_stats())
    action = torch.tensor([[0.02, 0, 1.0, 0, 0, 0, 0.1], [0.03, 0, 1.0, 0, 0, 0, -0.1]])
    policy.head.out.weight.data.zero_()
    policy.head.out.bias.data = policy.action_scale(action).flatten()
    bundle = PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer)
    save_bundle(tmp_path / "run" / "final", bundle)
    return tmp_path / "run"


def view(num: int):
    window = square_window(0, 0, batch=num, chunk=1, goal=False)
    sentences = np.array([SENTENCES[i % 2] for i in range(num)])
    return {"rgb": window.rgb, "state": window.state}, {"instruction": sentences}


def test_actions_come_back_in_meters(run: Path):
    policy, spec = load_policy(run, n_action_steps=2)
    obs, info = view(3)
    policy.reset(obs, info, [0, 1, 2])
    first, second, third = (policy.act(obs, info) for _ in range(3))
    assert spec == SPEC
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, [[0.02, 0, 1.0, 0, 0, 0, 1.0]] * 3, atol=1e-6)  # the robot clips dz and counts it
    np.testing.assert_allclose(second[:, [0, 6]], [[0.03, -1.0]] * 3, atol=1e-6)
    np.testing.assert_array_equal(third, first)


def test_it_looks_again_as_often_as_told(run: Path):
    policy, _ = load_policy(run, n_action_steps=1)
    obs, info = view(2)
    policy.reset(obs, info, [0, 1])
    assert [policy.act(obs, info)[0, 6] for _ in range(3)] == [1.0, 1.0, 1.0]
    assert load_policy(run)[0].n_action_steps == SMALL.n_action_steps
    with pytest.raises(ConfigError, match=r"n_action_steps must be 1 \.\. 2 \(the policy's chunk\); got 3"):
        load_policy(run, n_action_steps=3)


def test_a_new_episode_forgets_the_chunk(run: Path):
    policy, _ = load_policy(run, n_action_steps=2)
    obs, info = view(1)
    for _ in range(2):
        policy.reset(obs, info, [0])
        assert policy.act(obs, info)[0, 6] == 1.0


def test_a_fleet_gets_what_single_robots_get(tmp_path: Path):
    tokenizer = word_tokenizer(SENTENCES)
    policy = new_policy(replace(SMALL, context=("language",)), seed=0, tokenizer=tokenizer)
    save_bundle(tmp_path / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer))
    fleet, _ = load_policy(tmp_path)
    obs, info = view(4)
    together = fleet.chunk(obs["rgb"], obs["state"], list(info["instruction"]))
    for robot in range(4):
        alone = fleet.chunk(obs["rgb"][[robot]], obs["state"][[robot]], [info["instruction"][robot]])
        np.testing.assert_allclose(alone[0], together[robot], atol=1e-5)


def test_what_is_missing_or_does_not_fit_is_named(run: Path, tmp_path: Path):
    policy, _ = load_policy(run)
    with pytest.raises(ConfigError, match=rf"trained on {SIZE} x {SIZE} images; got \(8, 8, 3\)"):
        policy.chunk(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 7)), ["go left"])
    with pytest.raises(CheckpointError, match=r"does not exist\. Give the run folder of jobs\.align"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"contains no policy \(policy\.json is missing\)"):
        load_policy(tmp_path / "empty")
    weights = run / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read \(truncated\?\)"):
        load_policy(run)
    (run / "final" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read|tokenizer\.json is missing"):
        load_policy(run)


def test_a_stage_1_policy_cannot_be_deployed(tmp_path: Path):
    policy = new_policy(replace(SMALL, context=("crops",)), seed=0)
    save_bundle(tmp_path / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=None))
    assert load_bundle(tmp_path / "final").tokenizer is None
    with pytest.raises(ConfigError, match=r"follows crops or goal images instead of instructions\. Align it"):
        load_policy(tmp_path)


def test_defaults_that_an_old_policy_takes_are_listed(run: Path, caplog: pytest.LogCaptureFixture):
    file = run / "final" / "policy.json"
    old = json.loads(file.read_text())
    del old["n_action_steps"], old["vision"]["kind"]
    file.write_text(json.dumps(old))
    load_bundle(run / "final")
    [record] = [each.getMessage() for each in caplog.records if each.name == "tap_ray.models.build"]
    assert record == (
        f"{file} was written by an older version of tap_ray; the current defaults were used for: n_action_steps = 2, "
        "vision.kind = 'resnet'"
    )


def test_a_checkpoint_file_that_lacks_a_key_names_both(run: Path):
    file = run / "final" / "norm_stats.json"
    old = json.loads(file.read_text())
    del old["action"]
    file.write_text(json.dumps(old))
    with pytest.raises(
        CheckpointError, match=r"final/norm_stats\.json lacks action: it was not written by a job of tap_ray\."
    ):
        load_bundle(run / "final")


def test_bfloat16_is_for_image_text_models_on_gpus(run: Path, tmp_path: Path):
    """On a CPU they act in float32; what they would compute in bfloat16 comes back as float32, too."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert acting_bf16(load_policy(run)[0].bundle.network, gpu) == "off"
    source = tiny_vlm("qwen2_5_vl", tmp_path / "vlm")
    for head in ("regression", "tokens"):
        runner, _ = load_policy(untrained_vlm_run(tmp_path / head, source, head))
        network = runner.bundle.network
        assert (acting_bf16(network, gpu), acting_bf16(network, cpu)) == ("auto", "off")
        seen: list[torch.dtype] = []
        hook = network.model.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0].dtype))
        given = (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, len(runner.bundle.spec.state)), np.float32), ["put"])
        torch.manual_seed(0)
        exact = runner.chunk(*given)
        assert not torch.is_autocast_enabled("cpu")
        assert set(seen) == {torch.float32}
        hook.remove()
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(0)
            rough = runner.chunk(*given)
        assert rough.dtype == exact.dtype == np.float32
        assert rough.shape == exact.shape
        assert np.isfinite(rough).all()
