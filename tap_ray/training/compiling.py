"""Applies `torch.compile` layer by layer if layers repeat, so that one compiled layer serves all."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from tap_ray.errors import ConfigError
from tap_ray.training.sharding import repeated_layers


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compile the repeated layers of an image-text model, or all of another network, in place: names and weights stay.

    Raises:
        ConfigError: this machine has no compiler for `device`.
    """
    require_compiler(device)
    for part in repeated_layers(model) or [model]:
        part.compile()


def require_compiler(device: torch.device) -> None:
    """Raise ConfigError unless torch can compile for `device` here: a C++ compiler, on GPUs Triton."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("--compile needs the package triton on GPUs. Run `pip install triton`, or omit --compile.")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise ConfigError(
            "--compile needs a C++ compiler on each machine that trains: apt-get install g++ (Debian, Ubuntu). Or "
            "omit --compile."
        )
