"""Saves and loads checkpoints: everything needed to resume with identical results, as safetensors and JSON.

    step-00000500/
        model.safetensors       weights and buffers
        optimizer.safetensors   "<parameter name>/<exp_avg | exp_avg_sq | step>"
        ema.safetensors         only with an average of the weights
        rng.safetensors         state of torch's generator
        state.json              version, step, and the caller's metadata (config of the model ...)

Of a sharded model (training/sharding.py) the first three are folders of shards, one file of each worker; see
shard_files.py. Either kind is read with and without shards, by any number of workers.

A checkpoint counts once it has its state.json, which is written last and deleted first; so half a one never does, on a
local disk or an object store. Nothing is ever unpickled.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from tap_ray import storage
from tap_ray.config import differences
from tap_ray.errors import CheckpointError
from tap_ray.models.weights import (
    FACTS_SHOWN,
    load_model,
    part_of,
    read_tensors,
    require_finite,
    require_same,
    write_tensors,
)
from tap_ray.runs import read_json, write_json
from tap_ray.training.optim import in_order, names_in_order
from tap_ray.training.shard_files import Shards, is_sharded, shards_of, wait_for
from tap_ray.training.shard_files import read as read_shards
from tap_ray.training.shard_files import write as write_shards
from tap_ray.training.sharding import part

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
    """The contents of a checkpoint; of a sharded model, what one worker writes."""

    step: int
    files: Mapping[str, Mapping[str, Tensor]]
    """File name without its ending -> whole tensors."""
    shards: Mapping[str, Shards] = field(default_factory=dict)
    """Folder name -> this worker's shards."""
    rank: int = 0
    world: int = 1
    """This worker, and the number of workers that write shards."""


def snapshot(state: TrainState, *, copied: bool = False) -> Snapshot:
    """Collect the contents of a checkpoint; for a sharded model each worker has its own. With `copied` the tensors are
    copies on the CPU, so that training may continue before they are written."""
    files = {"model": state.model.state_dict(), "optimizer": _optimizer_tensors(state)}
    files |= {} if state.ema is None else {"ema": state.ema}
    rng = {"rng": {"torch": torch.get_rng_state()}}
    if not is_sharded(files["model"]):
        whole = {name: {key: _kept(value, copied) for key, value in each.items()} for name, each in files.items()}
        return Snapshot(step=state.step, files=whole | rng)
    rank = dist.get_rank()
    shards = {name: shards_of(tensors, rank, copied=copied) for name, tensors in files.items()}
    return Snapshot(step=state.step, files=rng, shards=shards, rank=rank, world=dist.get_world_size())


def _kept(value: Tensor, copied: bool) -> Tensor:
    return value.to("cpu", copy=True) if copied else value


def save(folder: Path, state: TrainState | Snapshot, metadata: Mapping[str, Any], **more: Any) -> None:
    """Write a checkpoint; it counts once all of its files are there. Of a sharded model every worker must call this;
    the first one waits for the files of the others.

    Args:
        folder: new folder; an existing one is replaced, but of a sharded model there must be none.
        state: the state to save.
        metadata: plain JSON that must be the same again when it is loaded (the model's config).
        more: further plain JSON of state.json, which whoever resumes reads.

    Raises:
        StorageError: the disk refused.
    """
    kept = state if isinstance(state, Snapshot) else snapshot(state)
    if kept.world == 1:
        storage.remove(folder, first=STATE)
    for name, shards in kept.shards.items():
        write_shards(folder / name, shards, rank=kept.rank, world=kept.world)
    if kept.rank:
        return
    for name in kept.shards:
        wait_for(folder / name, kept.world)
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
    _load_model(folder, model)
    if (folder / "ema.safetensors").is_file():
        model.load_state_dict(read_tensors(folder / "ema.safetensors"), strict=False)
    elif (folder / "ema").exists():
        own = dict(model.named_buffers()) | model.state_dict()
        read_shards(folder / "ema", lambda names: {name: own[name] for name in names if name in own})


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
    _load_model(folder, state.model)
    _load_optimizer(folder, state)
    if state.ema is not None:
        state.ema = _average(folder, state.ema)
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


def _has_shards(folder: Path) -> bool:
    return not (folder / "model.safetensors").is_file() and (folder / "model").exists()


def _load_model(folder: Path, model: nn.Module) -> None:
    if not _has_shards(folder):
        load_model(folder / "model.safetensors", model)
        return
    tensors = read_shards(folder / "model", lambda _: model.state_dict())
    require_finite({name: part(value) for name, value in tensors.items()}, where=str(folder / "model"))


def _average(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if _has_shards(folder):
        return dict(read_shards(folder / "ema", lambda _: like))
    file = folder / "ema.safetensors"
    saved = read_tensors(file)
    require_same(saved, like, where=str(file))
    return {name: part_of(saved[name], value) for name, value in like.items()}


def _load_optimizer(folder: Path, state: TrainState) -> None:
    parameters = dict(zip(names_in_order(state.model, state.optimizer), in_order(state.optimizer), strict=True))
    sharded = _has_shards(folder)
    file = folder / ("optimizer" if sharded else "optimizer.safetensors")

    def split(key: str) -> tuple[str, str]:
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"{file}: this run does not train {name}. Resume with the same config.")
        return name, kind

    def like(key: str) -> Tensor:
        name, kind = split(key)
        return torch.empty(()) if kind == "step" else torch.empty_like(parameters[name], requires_grad=False)

    tensors = read_shards(file, lambda keys: {key: like(key) for key in keys}) if sharded else read_tensors(file)
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key, value in tensors.items():
        name, kind = split(key)
        whole = kind != "step" and not sharded
        moments[name][kind] = _laid_as(part_of(value, parameters[name]), parameters[name]) if whole else value
    missing = [name for name, found in moments.items() if not found]
    if tensors and missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing[:FACTS_SHOWN])}. Resume with the same config.")
    groups = state.optimizer.state_dict()["param_groups"]
    kept = dict(enumerate(moments.values())) if tensors else {}
    state.optimizer.load_state_dict({"state": kept, "param_groups": groups})


def _laid_as(moment: Tensor, parameter: Tensor) -> Tensor:
    """In memory as the parameter lies (channels_last ...): fused AdamW goes through both as they lie."""
    return torch.empty_like(parameter).copy_(moment) if moment.stride() != parameter.stride() else moment
