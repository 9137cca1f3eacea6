"""A policy on the image-text model of a SmolVLA folder, made here under the names that LeRobot publishes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import new_policy
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prompt import instruction_tokenizer
from tap_ray.models.smolvla import cut_to_smolvla
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files
from tests.contexts import batch_with
from tests.moving_square import SIZE
from tests.tiny_vlm import tiny_vlm

LAYERS = 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vlm("smolvlm", tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def smolvla(source: str, tmp_path: Path) -> Path:
    """A SmolVLA folder: the model's first layer, other numbers in it, in bfloat16, an expert and projections."""
    tensors = {"model.state_proj.weight": torch.ones(2, 2), "model.action_in_proj.weight": torch.ones(2, 2)}
    tensors |= {f"model.vlm_with_expert.lm_expert.layers.{at}.mlp.up_proj.weight": torch.ones(2, 2) for at in range(2)}
    for name, value in load_file(Path(source) / "model.safetensors").items():
        if "text_model.layers.1." not in name:
            tensors[f"model.vlm_with_expert.vlm.{name}"] = (value + 1).bfloat16()
    save_file(tensors, tmp_path / "model.safetensors")
    about = {"type": "smolvla", "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"}
    about |= {"num_vlm_layers": LAYERS}  # type: ignore[dict-item]
    (tmp_path / "config.json").write_text(json.dumps(about))
    return tmp_path


def made(source: str, **vlm: str) -> VlmPolicy:
    config = PolicyConfig(image_size=SIZE, head_width=16, num_state=7, vlm=VlmConfig(pretrained=source, **vlm))  # type: ignore[arg-type]
    files = cut_to_smolvla(read_files(source), config.vlm)
    policy = new_policy(config, seed=0, tokenizer=instruction_tokenizer(files), parts=VlmParts(files=files))
    assert isinstance(policy, VlmPolicy)
    return policy


def test_its_weights_are_taken_and_the_rest_is_named(source: str, smolvla: Path, capsys: pytest.CaptureFixture[str]):
    usual = made(source)
    capsys.readouterr()
    policy = made(source, smolvla=str(smolvla))
    taken = [name for name in usual.model.state_dict() if "layers.1." not in name or "vision" in name]
    num = len(taken) - 1  # the query word is ours
    assert capsys.readouterr().out == (
        f"SmolVLA: {num} tensors of {smolvla}/model.safetensors loaded; not used: "
        "model.action_in_proj.weight (1), model.state_proj.weight (1), model.vlm_with_expert.lm_expert.layers (2), "
        "model.vlm_with_expert.vlm.lm_head (1).\n"
    )
    before, now = usual.model.state_dict(), policy.model.state_dict()
    assert set(now) == set(taken)
    for name in [name for name in taken if not name.endswith("added.weight")]:
        assert now[name].dtype == torch.float32
        assert torch.equal(now[name], (before[name] + 1).bfloat16().float())
    assert policy.parts.files.config.get_text_config().num_hidden_layers == LAYERS
    batch = batch_with("crops", num=2)
    assert policy.train()(batch)["action"].shape == (2, policy.config.chunk, 7)


def test_what_cannot_be_is_refused_by_name(source: str, smolvla: Path, tmp_path_factory: pytest.TempPathFactory):
    tensors = load_file(smolvla / "model.safetensors")
    gone = "model.vlm_with_expert.vlm.model.text_model.norm.weight"
    save_file({name: value for name, value in tensors.items() if name != gone}, smolvla / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"text_model\.norm\.weight is missing"):
        made(source, smolvla=str(smolvla))
    about = json.loads((smolvla / "config.json").read_text())
    (smolvla / "config.json").write_text(json.dumps(about | {"num_vlm_layers": 3}))
    with pytest.raises(
        ConfigError, match=r"has 3 text layers, but .* has only 2\. Give the model .* HuggingFaceTB/SmolVLM2"
    ):
        made(source, smolvla=str(smolvla))
    (smolvla / "config.json").write_text(json.dumps(about | {"type": "pi0"}))
    with pytest.raises(CheckpointError, match=r"contains a policy of type 'pi0'"):
        made(source, smolvla=str(smolvla))
    other = read_files(tiny_vlm("paligemma", tmp_path_factory.mktemp("other")))
    with pytest.raises(ConfigError, match=r"needs a SmolVLM2 as --policy"):
        cut_to_smolvla(other, replace(VlmConfig(), smolvla=str(smolvla)))
