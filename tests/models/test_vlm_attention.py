"""`--policy.vlm.attention` with each architecture: what it computes with, and what it refuses."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tap_ray.errors import ConfigError
from tests.models.test_vlm import KINDS, batch_for, made
from tests.tiny_vlm import tiny_vlm

NO_SDPA = ("paligemma",)
"""Gemma 2 caps its scores softly, which torch's fused attention cannot."""


def attention_of(model: PreTrainedModel) -> set[str]:
    """How the attention layers of a model compute."""
    layers = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return {layer.config._attn_implementation for layer in layers}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_attention_gives_the_same_actions(kind: str, tmp_path: Path):
    source, found = tiny_vlm(kind, tmp_path), {}
    for attention in ("auto", "eager") if kind in NO_SDPA else ("auto", "eager", "sdpa"):
        policy = made(source, attention=attention).eval()
        used = {"eager", "sdpa"} if kind in NO_SDPA else {"sdpa"}  # its vision tower has no cap
        assert attention_of(policy.model) == (used if attention == "auto" else {attention})
        with torch.no_grad():
            found[attention] = policy(batch_for(policy))["action"]
    for attention, action in found.items():
        torch.testing.assert_close(action, found["eager"], msg=lambda text, name=attention: f"{name}: {text}")


@pytest.mark.parametrize("kind", NO_SDPA)
@pytest.mark.parametrize("weights", ["pretrained", "fresh"])
def test_attention_that_an_architecture_does_not_have_is_refused(kind: str, weights: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"attention sdpa: Gemma2Model does not support .*Give auto, which uses"):
        made(tiny_vlm(kind, tmp_path), attention="sdpa", weights=weights)
