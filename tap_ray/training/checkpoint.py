"""Saves and loads checkpoints: everything needed to resume with identical results, as safetensors and JSON.

    step-00000500/
        model.safetensors       weights and buffers
        optimizer.safetensors   "<parameter name>/<exp_avg | exp_avg_sq | step>"
        ema.safetensors         only with an average of the weights
        rng.safetensors         state of torch's generator
        state.json              version, step, and the caller's metadata (config of the model ...)

A checkpoint counts once it has its state.json, which is written last and deleted first; so half a one never does, on a
local disk or an object store. Nothing is ever unpickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tap_ray import storage
from tap_ray.config import differences
from tap_ray.errors import CheckpointError
from tap_ray.models.weights import FACTS_SHOWN, load_model, part_of, read_tensors, require_same, write_tensors
from tap_ray.runs import read_json, write_json
from tap_ray.training.optim import in_order, names_in_order
from tap_ray.training.sharding import gathered

VERSION = 1
STEP_FOLDER = "step-{step:08d}"
STATE = "state.json"


@dataclass
class TrainState:
    """The state that changes during training."""

    model: nn.Module
    """The model without DDP or compilation wrappers."""
    optimizer: AdamW
    ema: dict[str, Tensor] | None = None
    """Averaged parameters by name; None without averaging."""
    step: int = 0
    """Optimizer steps taken, which is also the number of the next batch."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The contents of a checkpoint, as whole tensors."""

    step: int
    files: Mapping[str, Mapping[str, Tensor]]
    """File name without its ending -> tensors."""


def snapshot(state: TrainState, *, copied: bool = False) -> Snapshot:
    """Collect the contents of a checkpoint. For a sharded model every worker must call this; the first gets whole
    tensors on its CPU. With `copied` the tensors are copies, so that training may continue before they are written."""
    files = {"model": state.model.state_dict(), "optimizer": _optimizer_tensors(state)}
    files |= {"rng": {"torch": torch.get_rng_state()}} | ({} if state.ema is None else {"ema": state.ema})
    return Snapshot(step=state.step, files={name: gathered(tensors, copied=copied) for name, tensors in files.items()})


def save(folder: Path, state: TrainState | Snapshot, metadata: Mapping[str, Any], **more: Any) -> None:
    """Write a checkpoint; it counts once all of its files are there.

    Args:
        folder: new folder; an existing one is replaced.
        state: the state to save.
        metadata: plain JSON that must be the same again when it is loaded (the model's config).
        more: further plain JSON of state.json, which whoever resumes reads.

    Raises:
        StorageError: the disk refused.
    """
    kept = state if isinstance(state, Snapshot) else snapshot(state)
    storage.remove(folder, first=STATE)
    with storage.atomic_write(folder, folder=True) as here:
        for name, tensors in kept.files.items():
            write_tensors(here / f"{name}.safetensors", tensors)
    write_json(folder / STATE, {"version": VERSION, "step": kept.step, "facts": metadata, **more})


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a model without wrappers: the averaged weights, if there are any.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, or of another model.
    """
    require_folder(folder)
    load_model(folder / "model.safetensors", model)
    if (folder / "ema.safetensors").is_file():
        model.load_state_dict(read_tensors(folder / "ema.safetensors"), strict=False)


def remove(folder: Path) -> None:
    """Delete a checkpoint; after a kill on the way the rest does not count as a checkpoint."""
    storage.remove(folder, first=STATE)


def remove_half_written(folder: Path) -> None:
    """Delete incomplete checkpoints below `folder`."""
    for found in folder.glob("*step-*"):
        if found.name.startswith(".") or not (found / STATE).is_file():
            remove(found)


def load_into(folder: Path, state: TrainState, metadata: Mapping[str, Any]) -> None:
    """Load model, optimizer, averaged weights, step and the state of torch's generator from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, or of another model or config; the message names the
            first differences.
    """
    require_folder(folder)
    saved = read_json(folder / STATE, needs=("version", "step", "facts"))
    if saved["version"] != VERSION:
        raise CheckpointError(f"{folder} has version {saved['version']}, but this version of tap_ray reads {VERSION}.")
    lines = differences(saved["facts"], json.loads(json.dumps(metadata)))
    if lines:
        raise CheckpointError(f"{folder} was written with another config:\n  " + "\n  ".join(lines[:FACTS_SHOWN]))
    load_model(folder / "model.safetensors", state.model)
    _load_optimizer(folder, state)
    if state.ema is not None:
        saved_ema = read_tensors(folder / "ema.safetensors")
        require_same(saved_ema, state.ema, where=str(folder / "ema.safetensors"))
        state.ema = {name: part_of(saved_ema[name], value) for name, value in state.ema.items()}
    torch.set_rng_state(read_tensors(folder / "rng.safetensors")["torch"])
    state.step = int(saved["step"])


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step below `folder`; None when there is none (half-written ones do not count)."""
    found = sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())
    return found[-1] if found else None


def require_folder(folder: Path) -> None:
    """Raise a CheckpointError if a checkpoint does not exist; it names the existing ones."""
    if (folder / STATE).is_file():
        return
    beside = sorted(path.name for path in folder.parent.glob("step-*")) if folder.parent.is_dir() else []
    hint = f"Beside it: {', '.join(beside)}." if beside else "There is no other checkpoint beside it either."
    raise CheckpointError(f"{folder} is not a checkpoint (no state.json in it). {hint}")


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names = names_in_order(state.model, state.optimizer)
    moments = state.optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": value.contiguous() for i, tensors in moments.items() for key, value in tensors.items()}


def _load_optimizer(folder: Path, state: TrainState) -> None:
    file = folder / "optimizer.safetensors"
    tensors = read_tensors(file)
    names = names_in_order(state.model, state.optimizer)
    parameters = list(in_order(state.optimizer))
    moments: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
    number = {name: i for i, name in enumerate(names)}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        if name not in number:
            raise CheckpointError(f"{file}: this run does not train {name}. Resume with the same config.")
        parameter = parameters[number[name]]
        moments[number[name]][kind] = _laid_as(part_of(value, parameter), parameter) if kind != "step" else value
    missing = [name for name, i in number.items() if not moments[i]]
    if tensors and missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing[:FACTS_SHOWN])}. Resume with the same config.")
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments if tensors else {}, "param_groups": groups})


def _laid_as(moment: Tensor, parameter: Tensor) -> Tensor:
    """In memory as the parameter lies (channels_last ...): fused AdamW goes through both as they lie."""
    return torch.empty_like(parameter).copy_(moment) if moment.stride() != parameter.stride() else moment
