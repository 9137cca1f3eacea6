"""Holds the settings of the image-text model in a separate file, because all jobs need the flags and few load a
model."""

from dataclasses import dataclass, replace
from typing import Literal

FLASH = "flash_attention_2"


@dataclass(frozen=True, kw_only=True)
class VlmConfig:
    """An image-text model as the policy's backbone; without `pretrained` there is none."""

    pretrained: str = ""
    """Local folder or hub id of the image-text model; empty: the policy is the small one of `vision` and `language`."""
    weights: Literal["pretrained", "fresh"] = "pretrained"
    """"fresh" initializes them randomly (ablation of the pretraining)."""
    smolvla: str = ""
    """Local folder of a SmolVLA policy (LeRobot) whose image-text model replaces the weights of `pretrained`, a
    SmolVLM2; it is cut to as many text layers. Empty: none."""
    pi0: str = ""
    """Local folder of a pi0 or pi0.5 policy (LeRobot, or openpi's conversion to PyTorch) whose image-text model
    replaces the weights of `pretrained`, a PaliGemma. Empty: none."""
    freeze: Literal["none", "vision", "all"] = "none"
    """What is frozen in this stage: nothing, the vision tower (the paper's Stage 1), or all of the model."""
    lora_rank: int = 0
    """Rank of LoRA updates (with `peft`) of the language model's layers, whose own weights are frozen; 0: none."""
    lora_alpha: float = 16.0
    """Scale of the LoRA updates, which are multiplied by lora_alpha / lora_rank."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights are kept. float32 for weights that are trained (products are bfloat16 by --bf16 all the same);
    bfloat16 halves the memory of weights that are not."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed; "auto": torch's fused one (sdpa) where the model has it. flash_attention_2, which only
    training uses, needs the package flash-attn and a GPU."""
    head_layers: Literal["last", "all"] = "last"
    """What the action head reads: the "last" hidden state of the language model, or a learned mean of the states behind
    "all" its layers (ELMo's scalar mix)."""
    pad_tokens: int = 1
    """Prompts are padded to a multiple of this many tokens, so that they have few different lengths, e.g. 32 with
    --compile; 1: to the longest of a batch."""
    checkpoint_activations: bool = False
    """Whether the layers' activations are computed again in the backward pass: less memory, more time."""


def without_flash(config: VlmConfig) -> VlmConfig:
    """The same model with attention "auto" in place of flash_attention_2, for processes that do not train."""
    return replace(config, attention="auto") if config.attention == FLASH else config
