"""Pretrained towers, from tiny checkpoints that the tests make and save."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from torch import nn

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy, save_bundle
from tap_ray.models.language import LanguageConfig, blind_tokenizer, encode, pretrained_tokenizer, word_tokenizer
from tap_ray.models.vision import VisionConfig
from tests.contexts import SENTENCES, batch_with, policy_with
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
SIZES = {"image_size": 32, "patch_size": 8}


def vit(**sizes) -> nn.Module:
    return hf.ViTModel(hf.ViTConfig(**NARROW | SIZES | {"intermediate_size": 16} | sizes))


def resnet() -> nn.Module:
    return hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))


def registers() -> nn.Module:
    """4 patches, a class token and 4 registers: 9 tokens, which look like 3 x 3."""
    config = hf.Dinov2WithRegistersConfig(**NARROW, image_size=16, patch_size=8, mlp_ratio=1, num_register_tokens=4)
    return hf.Dinov2WithRegistersModel(config)


def siglip() -> nn.Module:
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**NARROW, **SIZES, intermediate_size=16))


def clip() -> nn.Module:
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**NARROW, **SIZES, intermediate_size=16))


def siglip_with_words() -> nn.Module:
    text = {**NARROW, "intermediate_size": 16, "vocab_size": 40, "projection_size": 16}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config={**NARROW, **SIZES, "intermediate_size": 16}))


TOWERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "vit": (vit, 4, 1),
    "dinov2 with registers": (registers, 2, 1),
    "siglip": (siglip, 4, 1),
    "clip": (clip, 4, 1),
    "siglip with its text tower": (siglip_with_words, 4, 1),
    "resnet": (resnet, 12, 2),
}
"""How to make one, cells of a row (48 px, a ResNet's first stage quarters them), and maps."""


def saved(make: Callable[[], nn.Module], folder: Path) -> str:
    torch.manual_seed(3)
    make().save_pretrained(folder)  # type: ignore[operator]
    return str(folder)


@pytest.fixture
def text_checkpoint(tmp_path: Path) -> Path:
    hf.BertModel(hf.BertConfig(**NARROW, vocab_size=40, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    words = word_tokenizer(SENTENCES)
    hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "bert"
    )
    return tmp_path / "bert"


@pytest.mark.parametrize("context", ["crops", "language"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", TOWERS)
def test_a_pretrained_tower_brings_its_weights_to_both_stages(name: str, frozen: bool, context: str, tmp_path: Path):
    make, grid, num_maps = TOWERS[name]
    source = saved(make, tmp_path / "tower")
    policy = policy_with(context, vision=VisionConfig(kind="pretrained", pretrained=source, frozen=frozen))
    original = hf.AutoModel.from_pretrained(source)
    original = getattr(original, "vision_model", original).state_dict()
    weights = policy.vision.tower.state_dict()
    assert weights
    assert all(torch.equal(value, original[n]) for n, value in weights.items())
    assert {n.split(".")[0] for n in original.keys() - weights.keys()} <= {"pooler", "head"}, "nothing else is left out"
    assert (policy.vision.grid, len(policy.vision.channels)) == (grid, num_maps)
    policy.train()
    assert policy.vision.tower.training is not frozen
    before = {n: value.clone() for n, value in policy.vision.state_dict().items()}
    policy(batch_with(context))["action"].sum().backward()
    grads = {n: p.grad is not None for n, p in policy.vision.named_parameters() if p.requires_grad}
    assert all(grads.values())
    assert bool(grads) is not frozen
    if frozen:  # the running statistics of a ResNet as well
        assert all(torch.equal(value, before[n]) for n, value in policy.vision.state_dict().items())


def test_a_patchs_features_lie_where_the_patch_lies(tmp_path: Path):
    """Behind the class token and the registers, row by row: only the patch that changes most differs most."""
    source = saved(registers, tmp_path / "tower")
    tower = policy_with("crops", vision=VisionConfig(kind="pretrained", pretrained=source), image_size=16).vision.eval()
    image = torch.full((1, 3, 16, 16), 128.0)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        other = image.clone()
        other[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255.0
        with torch.no_grad():
            changed = (tower(other)[0] - tower(image)[0]).abs().sum((0, 1))
        assert divmod(int(changed.argmax()), 2) == (row, column)


def bert(folder: Path) -> str:
    return saved(lambda: hf.BertModel(hf.BertConfig(**NARROW, vocab_size=40, intermediate_size=16)), folder)


def masked_autoencoder(folder: Path) -> str:
    sizes = NARROW | SIZES | {"intermediate_size": 16}
    return saved(lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**sizes)), folder)


def qwen(folder: Path) -> str:
    text = {**NARROW, "intermediate_size": 16, "vocab_size": 40, "num_key_value_heads": 1, "bos_token_id": 1}
    text["eos_token_id"] = 2
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    look = {"depth": 1, "embed_dim": 16, "num_heads": 1, "hidden_size": 16, "patch_size": 8, "mlp_ratio": 1}
    return saved(lambda: hf.Qwen2VLModel(hf.Qwen2VLConfig(text_config=text, vision_config=look)), folder)


@pytest.mark.parametrize(
    ("make", "kind"), [(bert, "bert"), (masked_autoencoder, "vit_mae"), (qwen, "qwen2_vl")], ids=["bert", "mae", "qwen"]
)
def test_what_is_no_vision_tower_is_refused_by_name(make: Callable[[Path], str], kind: str, tmp_path: Path):
    source = make(tmp_path / "other")
    text = rf"other' \({kind}\) does not turn one image into feature maps or patch tokens(.|\n)*e\.g\. ViT, DINOv2"
    with pytest.raises(CheckpointError, match=text):
        policy_with("crops", vision=VisionConfig(kind="pretrained", pretrained=source))


def test_a_cut_off_tower_is_refused(tmp_path: Path):
    source = saved(vit, tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"Cannot load the folder .*vit' as a vision model"):
        policy_with("crops", vision=VisionConfig(kind="pretrained", pretrained=source))


def test_a_saved_policy_needs_its_checkpoints_no_more(text_checkpoint: Path, tmp_path: Path):
    vision = VisionConfig(kind="pretrained", pretrained=saved(vit, tmp_path / "vit"))
    language = LanguageConfig(kind="pretrained", pretrained=str(text_checkpoint))
    tokenizer = pretrained_tokenizer(str(text_checkpoint))
    config = replace(SMALL, context=("language",), vision=vision, language=language)
    policy = new_policy(config, seed=0, tokenizer=tokenizer).eval()
    save_bundle(tmp_path / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer))
    for file in [*(tmp_path / "vit").iterdir(), *text_checkpoint.iterdir()]:
        file.unlink()
    again = load_bundle(tmp_path / "final")
    assert again.tokenizer is not None
    batch = batch_with("language") | {"tokens": encode(again.tokenizer, SENTENCES, 8)}
    assert torch.equal(again.network(batch)["action"], policy(batch)["action"])
    assert again.spec == SPEC
    assert again.norm == square_stats()


def test_words_are_numbered_in_order_and_unknown_ones_share_a_number():
    tokenizer = word_tokenizer(["Put the spoon", "the cloth"])
    assert encode(tokenizer, ["the spoon", "PUT the hammer on"], 4).tolist() == [[5, 4, -1, -1], [3, 5, 1, 1]]
    again = Tokenizer.from_str(tokenizer.to_str())
    assert encode(again, ["put the hammer"], 4).tolist() == [[3, 5, 1, -1]]


def test_without_language_all_instructions_look_the_same():
    tokenizer = Tokenizer.from_str(blind_tokenizer().to_str())
    assert encode(tokenizer, ["Put the spoon on the cloth", "push"], 4).tolist() == [[1, -1, -1, -1]] * 2


def test_missing_checkpoints_are_named(tmp_path: Path):
    for vision, error, text in (
        (VisionConfig(kind="pretrained"), ConfigError, "needs a local folder or a hub id"),
        (VisionConfig(kind="pretrained", pretrained=str(tmp_path)), CheckpointError, "Cannot load the folder"),
    ):
        with pytest.raises(error, match=text):
            policy_with("crops", vision=vision)
    with pytest.raises(CheckpointError, match="Cannot load a tokenizer from"):
        pretrained_tokenizer(str(tmp_path))
