"""Adds low-rank updates (LoRA, arXiv 2106.09685) to a language model's layers with `peft`; they are merged when a
policy is saved."""

from typing import Any, Mapping

from torch import Tensor, nn

from tap_ray.errors import ConfigError

BASE = "base_layer."


def add_lora(model: nn.Module, *, rank: int, alpha: float) -> None:
    """Add updates that start at zero to every linear layer of `model`, in place; only these are trained then.

    Raises:
        ConfigError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("--policy.vlm.lora-rank needs the package peft: pip install 'tap-ray[vlm]'.") from None
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    model.requires_grad_(False)
    config: Any = {"r": rank, "lora_alpha": alpha, "target_modules": linear}
    inject_adapter_in_model(LoraConfig(**config), model)


def is_update(name: str) -> bool:
    """Whether a tensor is part of a low-rank update."""
    return ".lora_" in name


def renamed(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a model without updates to their names in `model`, which may have some."""
    name_in_model = {name.replace(BASE, ""): name for name in model.state_dict()}
    return {name_in_model.get(name, name): value for name, value in tensors.items()}


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` with its updates merged into the weights."""
    tensors = dict(model.state_dict())
    for name, part in model.named_modules():
        if hasattr(part, "lora_A") and hasattr(part, "get_delta_weight"):
            weight = tensors[f"{name}.{BASE}weight"]
            tensors[f"{name}.{BASE}weight"] = weight + part.get_delta_weight("default").to(weight.dtype)  # pyright: ignore
    return {name.replace(BASE, ""): value for name, value in tensors.items() if not is_update(name)}
