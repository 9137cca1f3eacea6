"""Reads and writes weights, and explains why they do not fit. Nothing is ever unpickled."""

import re
from pathlib import Path
from typing import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from tap_ray import storage
from tap_ray.errors import CheckpointError

FORMER = (
    (re.compile(r"\b(encoder|decoder)\.place\b"), r"\1.pos_embed"),
    (re.compile(r"\b(join|sentence)\.mix\b"), r"\1.proj"),
    (re.compile(r"\b(action|state)_place\b"), r"\1_index"),
)
"""Former names of tensors, found in older files -> current names."""
FACTS_SHOWN = 6
"""Largest number of differences named in one message."""


def read_tensors(file: Path, *, cure: str = "") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, under their current names.

    Args:
        file: where they are.
        cure: what to do if the file is missing or truncated; default: what helps with a run of ours.

    Raises:
        CheckpointError: the file is missing or truncated.
    """
    if not file.exists():
        raise CheckpointError(f"{file} is missing. {cure or 'Give the folder of a run that has finished.'}")
    try:
        tensors = load(storage.read(file)) if storage.is_remote(file) else load_file(file)
    except (SafetensorError, OSError) as error:
        what = f"{file} cannot be read (truncated?): {error}."
        raise CheckpointError(f"{what} {cure or 'Use an earlier checkpoint.'}") from None
    return {_present(name): value for name, value in tensors.items()}


def _present(name: str) -> str:
    for former, present in FORMER:
        name = former.sub(present, name)
    return name


def write_tensors(file: Path, tensors: Mapping[str, Tensor], *, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole or not at all; `about` is its metadata.

    Raises:
        StorageError: the storage refused.
    """
    with storage.atomic_write(file) as here:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, here, about)


def load_model(file: Path, model: nn.Module) -> None:
    """Load all of a model's weights and buffers.

    Raises:
        CheckpointError: the file is missing, truncated, of another model, or contains NaN or infinity.
    """
    tensors = read_tensors(file)
    require_same(tensors, model.state_dict(), where=str(file))
    require_finite(tensors, where=str(file))
    model_tensors = model.state_dict()
    model.load_state_dict({name: part_of(value, model_tensors[name]) for name, value in tensors.items()})


def require_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Raise a CheckpointError if there are NaN or infinite numbers."""
    if spoilt := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(
            f"{where} contains NaN or infinite numbers in {', '.join(spoilt[:FACTS_SHOWN])}. Use an earlier "
            "checkpoint, or train again with a smaller --lr."
        )


def part_of(tensor: Tensor, model_tensor: Tensor) -> Tensor:
    """The part of a whole tensor that corresponds to `model_tensor`: all of it, or this worker's shard
    (training/sharding.py)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(model_tensor, DTensor):
        return tensor.to(model_tensor.device)
    return distribute_tensor(
        tensor.to(model_tensor.device), model_tensor.device_mesh, model_tensor.placements, src_data_rank=None
    )


def require_same(have: Mapping[str, Tensor], want: Mapping[str, Tensor], *, where: str) -> None:
    """Raise a CheckpointError unless both have the same names and shapes; it names the first few that differ."""
    lines = [f"{name} is missing" for name in want if name not in have]
    lines += [f"{name} is not in this model" for name in have if name not in want]
    lines += [
        f"{name} has shape {tuple(have[name].shape)}, this model has {tuple(value.shape)}"
        for name, value in want.items()
        if name in have and have[name].shape != value.shape
    ]
    if lines:
        more = f"\n  ... and {len(lines) - FACTS_SHOWN} more" if len(lines) > FACTS_SHOWN else ""
        raise CheckpointError(f"{where} does not fit this model:\n  " + "\n  ".join(lines[:FACTS_SHOWN]) + more)
