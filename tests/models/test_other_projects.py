"""Policies on the image-text models of a SmolVLA and a pi0 folder, made here under the names that are published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import new_policy
from tap_ray.models.other_projects import fitted
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prompt import instruction_tokenizer
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files
from tests.contexts import batch_with
from tests.moving_square import SIZE
from tests.tiny_vlm import TEXT, paligemma, tiny_vlm

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
    files = fitted(read_files(source), config.vlm)
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
        fitted(other, replace(VlmConfig(), smolvla=str(smolvla)))


GEMMA = {"model_type": "gemma"}
PUBLISHED = (("language_model.model.", "language_model."), ("vision_tower.", "vision_tower.vision_model."))
"""How transformers writes a tensor of pi0 -> how LeRobot and openpi write it."""
EARLIER = (("paligemma.model.", "paligemma."), ("vision_tower.", "vision_tower.vision_model."))
IN_FILE = "paligemma_with_expert.paligemma."


@pytest.fixture(scope="module")
def pi0(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A PaliGemma and a pi0 that transformers has made of it, other numbers in it, both saved by transformers."""
    base, folder = tmp_path_factory.mktemp("paligemma"), tmp_path_factory.mktemp("pi0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = paligemma(base, GEMMA)
        expert = {**TEXT, **GEMMA, "vocab_size": 20, "hidden_size": 8}
        hf.PI0ForConditionalGeneration(hf.PI0Config(vlm_config=config, dit_config=expert)).save_pretrained(folder)
    return str(base), folder


def as_published(folder: Path, out: Path, prefix: str = "", earlier: bool = False) -> dict[str, torch.Tensor]:
    """Write the policy as LeRobot and openpi do: their names (`earlier`: LeRobot's until 2025), word embeddings as
    lm_head only and no rows behind the last word. Returns the tensors under their names in transformers' file."""
    saved, published = load_file(folder / "model.safetensors"), {}
    for name, value in saved.items():
        for ours, theirs in EARLIER if earlier else PUBLISHED:
            name = name.replace(ours, theirs) if name.startswith(IN_FILE) else name
        if "embed_tokens" in name:
            name = f"{IN_FILE}{'language_model.' if earlier else ''}lm_head.weight"
            value = value[:1990].clone()
        published[prefix + name] = value
    save_file(published, out / "model.safetensors")
    return saved


@pytest.mark.parametrize(
    ("about", "prefix", "earlier"),
    [
        ({"type": "pi0"}, "model.", False),
        ({"type": "pi0"}, "model.", True),
        ({"type": "pi05"}, "", False),
        ({"paligemma_variant": "gemma_2b"}, "", False),
    ],
    ids=["lerobot", "earlier lerobot", "pi0.5", "openpi"],
)
def test_a_published_pi0(
    pi0: tuple[str, Path], tmp_path: Path, about: dict, prefix: str, earlier: bool, capsys: pytest.CaptureFixture[str]
):
    base, folder = pi0
    saved = as_published(folder, tmp_path, prefix, earlier)
    (tmp_path / "config.json").write_text(json.dumps(about))
    capsys.readouterr()
    policy = made(base, pi0=str(tmp_path))
    now = policy.model.state_dict()
    num = sum(name.startswith(IN_FILE) for name in saved)
    said = capsys.readouterr().out
    assert said.startswith(f"pi0: {num} tensors of {tmp_path}/model.safetensors loaded (the last 10 words are 0); not ")
    assert f", {prefix}action_in_proj.weight (1), " in said
    for name, value in saved.items():
        if name.startswith(f"{IN_FILE}model.") and "embed_tokens" not in name:
            ours = name.removeprefix(f"{IN_FILE}model.").replace("language_model.model.", "language_model.")
            assert torch.equal(now[ours], value), name
    words = policy.model.get_input_embeddings()(torch.arange(2000)) / TEXT["hidden_size"] ** 0.5  # Gemma scales them
    assert torch.equal(words[:1990], saved[f"{IN_FILE}model.language_model.model.embed_tokens.weight"][:1990])
    assert not words[1990:].any()
    assert policy.train()(batch_with("crops", num=2))["action"].shape == (2, policy.config.chunk, 7)


def test_a_pi0_of_transformers_computes_what_its_own_class_does(pi0: tuple[str, Path]):
    base, folder = pi0
    theirs = hf.PI0ForConditionalGeneration.from_pretrained(folder).model.vlm.eval()
    ours = made(base, pi0=str(folder)).model.eval()
    given = {"input_ids": torch.tensor([[4] * 16 + [0, 9, 11]]), "pixel_values": torch.rand(1, 3, 32, 32)}
    given["token_type_ids"] = torch.zeros(1, 19, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(ours(**given).last_hidden_state, theirs(**given).last_hidden_state)


def test_what_cannot_be_a_pi0_is_refused_by_name(pi0: tuple[str, Path], smolvla: Path, tmp_path: Path):
    base, folder = pi0
    with pytest.raises(CheckpointError, match=r"type 'smolvla', but --policy\.vlm\.pi0 needs type 'pi0' or 'pi05'"):
        made(base, pi0=str(smolvla))
    with pytest.raises(ConfigError, match=r"Give --policy\.vlm\.smolvla or --policy\.vlm\.pi0, not both"):
        made(base, pi0=str(folder), smolvla=str(smolvla))
    for kind, types in (("smolvlm", "'smolvlm' with 'llama'"), ("paligemma", "'paligemma' with 'gemma2'")):
        (tmp_path / kind).mkdir()
        with pytest.raises(ConfigError, match=rf"--policy\.vlm\.pi0 needs a PaliGemma \(the first.*got {types}"):
            fitted(read_files(tiny_vlm(kind, tmp_path / kind)), VlmConfig(pretrained="x", pi0=str(folder)))
    as_published(folder, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "pi0"}))
    tensors = load_file(tmp_path / "model.safetensors")
    longer = torch.zeros(2010, TEXT["hidden_size"])
    save_file({**tensors, f"{IN_FILE}lm_head.weight": longer}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has shape \(2010, 16\), .* \(2000, 16\)"):
        made(base, pi0=str(tmp_path))
    del tensors[f"{IN_FILE}lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is missing"):
        made(base, pi0=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is missing\. --policy\.vlm\.pi0 needs a folder with"
    ):
        made(base, pi0=str(tmp_path))
