"""Decides where products are in bfloat16: in training, validation and acting."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tap_ray.errors import ConfigError
from tap_ray.models.vlm import VlmPolicy


def autocast(bf16: str, device: torch.device, model: nn.Module | None = None) -> contextlib.AbstractContextManager[Any]:
    """The autocast context for `TrainConfig.bf16`, for passes of a bare model.

    Autocast's cache keeps each trained weight's bfloat16 copy until the context ends. The backward pass needs these
    copies anyway, and the cache shares them among a step's prompts; but not where the layers are computed again in the
    backward pass: there the cache is off.
    """
    if bf16 not in ("auto", "on", "off"):
        raise ConfigError(f'--bf16 must be "auto", "on" or "off"; got {bf16!r}.')
    if not (has_bf16(device) if bf16 == "auto" else bf16 == "on"):
        return contextlib.nullcontext()
    recomputes = isinstance(model, VlmPolicy) and model.config.vlm.checkpoint_activations
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=not recomputes)


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Whether this machine has hardware for bfloat16 products (CPU: AVX512-BF16 or AMX, Linux)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def acting_bf16(policy: nn.Module, device: torch.device) -> str:
    """What `TrainConfig.bf16` would be when acting: "auto" for an image-text model on a GPU. All else acts in float32,
    so that actions on CPUs are always the same bits."""
    return "auto" if isinstance(policy, VlmPolicy) and device.type == "cuda" else "off"
