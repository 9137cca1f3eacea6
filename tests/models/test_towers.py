"""Pretrained towers, from tiny checkpoints that the tests make and save."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import Trained, load_trained, new_policy, save_policy
from tap_ray.models.language import LanguageConfig, encode, pretrained_tokenizer, word_tokenizer
from tap_ray.models.vision import VisionConfig
from tap_ray.training.batches import to_tensors
from tests.moving_square import SPEC, square_stats, square_window
from tests.small import SMALL

SENTENCES = ["put the spoon on the cloth", "push the pumpkin to the left"]


@pytest.fixture
def vision_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def text_checkpoint(tmp_path: Path) -> Path:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    words = word_tokenizer(SENTENCES)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "bert"
    )
    return tmp_path / "bert"


def test_a_pretrained_tower_brings_its_weights_its_size_and_stays_frozen(vision_checkpoint: Path):
    vision = VisionConfig(kind="pretrained", pretrained=str(vision_checkpoint), frozen=True)
    policy = new_policy(replace(SMALL, vision=vision), seed=0)
    original = ViTModel.from_pretrained(vision_checkpoint).state_dict()
    for name, value in policy.vision.tower.state_dict().items():
        assert torch.equal(value, original[name])
    assert policy.vision.num_tokens == 16  # 32 px in patches of 8, without the class token
    policy.train()
    assert not policy.vision.tower.training
    out = policy(to_tensors(square_window(0, 0, batch=2, chunk=2, goal=True), torch.device("cpu")))
    out["action"].sum().backward()
    assert all(p.grad is None for p in policy.vision.parameters())


def test_a_pretrained_resnet_keeps_its_statistics_while_frozen(tmp_path: Path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    vision = VisionConfig(kind="pretrained", pretrained=str(tmp_path / "resnet"), frozen=True)
    policy = new_policy(replace(SMALL, vision=vision), seed=0).train()
    before = {name: value.clone() for name, value in policy.vision.state_dict().items()}
    policy(to_tensors(square_window(0, 0, batch=2, chunk=2, goal=True), torch.device("cpu")))
    assert all(torch.equal(value, before[name]) for name, value in policy.vision.state_dict().items())


def test_a_saved_policy_needs_its_checkpoints_no_more(vision_checkpoint: Path, text_checkpoint: Path, tmp_path: Path):
    vision = VisionConfig(kind="pretrained", pretrained=str(vision_checkpoint))
    language = LanguageConfig(kind="pretrained", pretrained=str(text_checkpoint))
    tokenizer = pretrained_tokenizer(str(text_checkpoint))
    config = replace(SMALL, context="language", vision=vision, language=language)
    policy = new_policy(config, seed=0, tokenizer=tokenizer).eval()
    save_policy(tmp_path / "final", Trained(policy=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer))
    for file in [*vision_checkpoint.iterdir(), *text_checkpoint.iterdir()]:
        file.unlink()
    again = load_trained(tmp_path / "final")
    batch = to_tensors(square_window(0, 0, batch=2, chunk=2, goal=False), torch.device("cpu"))
    assert again.tokenizer is not None
    batch |= {"tokens": encode(again.tokenizer, SENTENCES, 8), "sentence": torch.tensor([0, 1])}
    assert torch.equal(again.policy(batch)["action"], policy(batch)["action"])
    assert again.spec == SPEC
    assert again.norm == square_stats()


def test_words_are_numbered_in_order_and_unknown_ones_share_a_number():
    tokenizer = word_tokenizer(["Put the spoon", "the cloth"])
    assert encode(tokenizer, ["the spoon", "PUT the hammer on it"], 4).tolist() == [[5, 4, -1, -1], [3, 5, 1, 1]]
    again = Tokenizer.from_str(tokenizer.to_str())
    assert encode(again, ["put the hammer"], 4).tolist() == [[3, 5, 1, -1]]


def test_missing_checkpoints_are_named(tmp_path: Path):
    for vision, error, text in (
        (VisionConfig(kind="pretrained"), ConfigError, "needs a local folder or a hub id"),
        (VisionConfig(kind="pretrained", pretrained=str(tmp_path)), CheckpointError, "Cannot load the folder"),
    ):
        with pytest.raises(error, match=text):
            new_policy(replace(SMALL, vision=vision), seed=0)
    with pytest.raises(CheckpointError, match="Cannot load a tokenizer from"):
        pretrained_tokenizer(str(tmp_path))
